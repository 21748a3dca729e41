"""Training of explainers against a frozen classifier (sections 4 and 5.1)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import AutoImageProcessor

from . import cards, subsets
from .data import ProcessedImages
from .faithfulness import rank_scores
from .masking import MASKINGS, MaskedClassifier, predicted_targets, target_attributions
from .modeling import SalvageModel
from .objectives import OBJECTIVES
from .training import LoopArguments, arg, fit, load_splits, make_accelerator


@dataclass
class ExplainerArguments(LoopArguments):
    """Arguments of scripts/train.py; the defaults are the paper's recipe."""

    model_name_or_path: str = arg("", "The frozen classifier to explain: a name on the Hub or a folder.")
    masking: str = arg("drop", f"How patches are hidden from the classifier: {', '.join(MASKINGS)}.")
    objective: str = arg("salvage", f"What is minimised: {', '.join(OBJECTIVES)}.")
    sampling: str = arg("guided", "Subsets: guided by the attributions (Algorithm 3), or uniform.")
    num_subsets: int = arg(32, "Subsets an image and step.")
    target: str = arg("label", "Class whose attributions guide the sampling and are validated: label or predicted.")
    freeze_backbone: bool = arg(False, "Train the mask transformer alone, on features computed once.")

    def __post_init__(self):
        super().__post_init__()
        choices = {"objective": tuple(OBJECTIVES), "sampling": ("guided", "uniform"), "target": ("label", "predicted")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(allowed)}")
        if not self.model_name_or_path:
            raise ValueError("model_name_or_path is needed: the classifier to explain")
        if self.num_subsets < 1:
            raise ValueError(f"num_subsets must be at least 1, got {self.num_subsets}")


def train_explainer(args: ExplainerArguments) -> dict[str, Any]:
    """Trains a Salvage explainer; writes it with processor and card to `output_dir`, and returns its scores."""
    accelerator = make_accelerator(args)
    with accelerator.main_process_first():
        classifier = MaskedClassifier.from_pretrained(args.model_name_or_path, masking=args.masking).to(
            accelerator.device
        )
        processor = AutoImageProcessor.from_pretrained(args.model_name_or_path)
        config = classifier.config if args.target == "label" else None
        columns = args.image_column_name, args.label_column_name
        train_images, eval_images = (ProcessedImages(part, processor, config, *columns) for part in load_splits(args))
    model = SalvageModel.from_classifier(classifier.classifier).to(accelerator.device)
    # Never used in a forward pass of visible patches; distributed training would wait for its gradient.
    mask_token = model.backbone.embeddings.mask_token
    if mask_token is not None:
        mask_token.requires_grad_(False)
    features: dict[str, torch.Tensor] = {}
    if args.freeze_backbone:
        model.backbone.requires_grad_(False)
        for name, images in (("train", train_images), ("eval", eval_images)):
            features[name] = all_patch_features(accelerator, model, images, args.per_device_eval_batch_size)
    objective = OBJECTIVES[args.objective]

    def explain(model, batch, split):
        if not args.freeze_backbone:
            return model(batch["pixel_values"])
        cached = features[split][batch["ids"].to(features[split].device)]
        return model(patch_features=cached.to(accelerator.device, torch.float32, non_blocking=True))

    def targets_of(batch):
        if "labels" in batch:
            return batch["labels"]
        rows, columns = classifier.patch_grid(batch["pixel_values"])
        everything = torch.ones(len(batch["ids"]), 1, rows * columns, dtype=torch.bool)
        return predicted_targets(classifier.logits(batch["pixel_values"], everything)[:, 0])

    def compute_loss(model, batch, index):
        output = explain(model, batch, "train")
        scores = target_attributions(output.attributions.detach(), targets_of(batch))
        drawn = draw_subsets(args, scores, batch["ids"], index)
        with accelerator.autocast():
            target_logits = classifier.logits(batch["pixel_values"], drawn)
        return objective(accelerator.unwrap_model(model).subset_logits(output, drawn), target_logits).mean()

    eval_loader = accelerator.prepare(DataLoader(eval_images, batch_size=args.per_device_eval_batch_size))

    @torch.no_grad()
    def evaluate(model):
        rows: list[torch.Tensor] = []
        for batch in tqdm(eval_loader, desc="Validating", leave=False, disable=not accelerator.is_main_process):
            output, targets = explain(model, batch, "eval"), targets_of(batch)
            attributions = target_attributions(output.attributions, targets)
            scores = rank_scores(classifier, batch["pixel_values"], attributions, targets, args.seed, batch["ids"])
            generator = subsets.KeyedGenerator((args.seed, 1), batch["ids"])
            drawn = subsets.uniform(len(attributions), 8, attributions.shape[1], generator=generator)
            target_logits = classifier.logits(batch["pixel_values"], drawn)
            divergence = objective(accelerator.unwrap_model(model).subset_logits(output, drawn), target_logits)
            correct = (predicted_targets(output.logits) == targets).float()
            row = torch.stack([scores.srg, scores.lif, scores.mif, divergence.mean(dim=1), correct], dim=1)
            rows.append(accelerator.gather_for_metrics(row))
        means = torch.cat(rows).mean(dim=0).tolist()
        return dict(zip(("srg", "lif", "mif", args.objective, "accuracy"), means, strict=True))

    def save(model, folder: Path, results: dict[str, Any]):
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        cards.write_explainer_card(folder, args, model.config, results, len(train_images), len(eval_images))

    return fit(args, accelerator, model, train_images, compute_loss, evaluate, "srg", save)


def draw_subsets(args: ExplainerArguments, scores: torch.Tensor, ids: torch.Tensor, index: int) -> torch.Tensor:
    """The subsets of batch number `index`: scores [B, N] -> bool [B, M, N].

    Slot m has one size for all images of the step, in every process, so that each size is one dense batch; the
    patches of an image are keyed by its id, so that they do not depend on the batch.
    """
    stream = (args.seed, index)
    shared = subsets.KeyedGenerator(stream, torch.zeros(1, dtype=torch.int64))
    sizes = subsets.uniform_sizes(1, args.num_subsets, scores.shape[1], generator=shared)[0]
    generator = subsets.KeyedGenerator(stream, ids.to(scores.device) + 1)
    if args.sampling == "guided":
        return subsets.attribution_guided(scores, args.num_subsets, generator=generator, sizes=sizes)
    return subsets.uniform(len(scores), args.num_subsets, scores.shape[1], generator=generator, sizes=sizes)


@torch.no_grad()
def all_patch_features(
    accelerator: Accelerator, model: SalvageModel, images: ProcessedImages, batch_size: int
) -> torch.Tensor:
    """The frozen backbone's features of a whole data set, float16 [images, N, hidden size] on the CPU."""
    loader = accelerator.prepare(DataLoader(images, batch_size=batch_size))
    model.eval()
    batches = [
        accelerator.gather_for_metrics(model.patch_features(batch["pixel_values"]).half()).cpu()
        for batch in tqdm(loader, desc="Features", disable=not accelerator.is_main_process)
    ]
    return torch.cat(batches)
