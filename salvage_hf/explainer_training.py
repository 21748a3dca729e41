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
from .data import ProcessedImages, image_names
from .faithfulness import rank_scores
from .masking import MASKINGS, MaskedClassifier, digest, fingerprint, predicted_targets, target_attributions
from .modeling import SalvageModel
from .objectives import OBJECTIVES
from .replay import ReplayStore
from .training import REPLAY_FILE, LoopArguments, arg, fit, load_splits, make_accelerator, with_found_batch_size


@dataclass
class ExplainerArguments(LoopArguments):
    """Arguments of scripts/train.py; the defaults are the paper's recipe."""

    model_name_or_path: str = arg("", "The frozen classifier to explain: a name on the Hub or a folder.")
    masking: str = arg("drop", f"How patches are hidden from the classifier: {', '.join(MASKINGS)}.")
    objective: str = arg("salvage", f"What is minimised: {', '.join(OBJECTIVES)}.")
    sampling: str | None = arg(
        None,
        "Subsets: guided by the attributions (Algorithm 3), or uniform: by the objective's own law. When not given, "
        "guided for salvage and uniform for the others, as published.",
    )
    shapley_sampler: str = arg(
        "exact", "That of ViT-Shapley and FastSHAP: exact, or as published, whose sizes stray from the kernel's."
    )
    new_subsets: int = arg(32, "Subsets an image and step whose values the classifier computes.")
    replayed_subsets: int = arg(
        0, "Earlier subsets an image and step, the last ones: guided by the scores of their time."
    )
    replay_from: str | None = arg(None, "Start with the values kept by an earlier run: its replay.safetensors.")
    target: str = arg("label", "Class whose attributions guide the sampling and are validated: label or predicted.")
    freeze_backbone: bool = arg(False, "Train the mask transformer alone, on features computed once.")
    num_views: int = arg(
        1, "Training items an image: itself, and random parts and mirror images of it. An epoch passes over all."
    )

    def __post_init__(self):
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective={self.objective!r} is not one of {', '.join(OBJECTIVES)}")
        shapley = OBJECTIVES[self.objective].shapley
        if self.sampling is None:
            self.sampling = "uniform" if shapley else "guided"
        if self.learning_rate is None and shapley:
            self.learning_rate = 1e-4
        super().__post_init__()
        choices = {
            "sampling": ("guided", "uniform"),
            "shapley_sampler": ("exact", "published"),
            "target": ("label", "predicted"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(allowed)}")
        if not self.model_name_or_path:
            raise ValueError("model_name_or_path is needed: the classifier to explain")
        if self.num_views < 1:
            raise ValueError(f"num_views must be at least 1, got {self.num_views}")
        if self.new_subsets < 0 or self.replayed_subsets < 0 or self.new_subsets + self.replayed_subsets < 1:
            raise ValueError(
                "new_subsets and replayed_subsets must not be negative nor both 0, "
                f"got {self.new_subsets} and {self.replayed_subsets}"
            )
        if 0 < self.replayed_subsets < self.new_subsets:
            raise ValueError(
                f"replayed_subsets={self.replayed_subsets} is fewer than new_subsets={self.new_subsets}: "
                "a step's own subsets would not all be kept"
            )
        if self.new_subsets == 0 and not self.replay_from:
            raise ValueError("new_subsets=0 needs replay_from, the values of an earlier run")
        if self.replay_from and not self.replayed_subsets:
            raise ValueError("replay_from needs replayed_subsets of at least 1")


@with_found_batch_size
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
        train_split, eval_split = load_splits(args)
        train_images = ProcessedImages(train_split, processor, config, *columns, args.num_views, args.seed)
        eval_images = ProcessedImages(eval_split, processor, config, *columns)
    objective = OBJECTIVES[args.objective]
    model = SalvageModel.from_classifier(classifier.classifier, paired_values=not objective.shapley)
    model.to(accelerator.device)
    weights = fingerprint(classifier.classifier)
    if accelerator.mixed_precision == "bf16":
        # Autocast would copy the frozen weights at every call. The sums of the residual stream are then rounded too.
        classifier.to(torch.bfloat16)
    # Never used in a forward pass of visible patches; distributed training would wait for its gradient.
    mask_token = model.backbone.embeddings.mask_token
    if mask_token is not None:
        mask_token.requires_grad_(False)
    features: dict[str, torch.Tensor] = {}
    if args.freeze_backbone:
        model.backbone.requires_grad_(False)
        for name, images in (("train", train_images), ("eval", eval_images)):
            features[name] = all_patch_features(accelerator, model, images, args.per_device_eval_batch_size)

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

    store = (
        make_store(args, accelerator, classifier, weights, processor, train_images) if args.replayed_subsets else None
    )

    def values_of(batch, drawn):
        """Logits of v(S) [B, M, K], and of both ends [B, 2, K] where the objective needs them, from one embedding."""
        asked = drawn
        if objective.shapley:
            ends = torch.tensor([False, True], device=drawn.device)[:, None].expand(len(drawn), -1, drawn.shape[-1])
            asked = torch.cat([drawn, ends], dim=1)
        with accelerator.autocast():
            logits = classifier.logits(batch["pixel_values"], asked).float()
        return logits.split([drawn.shape[1], asked.shape[1] - drawn.shape[1]], dim=1)

    def compute_loss(model, batch, index):
        output = explain(model, batch, "train")
        if args.new_subsets:
            scores = target_attributions(output.attributions.detach(), targets_of(batch))
            drawn = draw_subsets(args, scores, batch["ids"], index)
        else:
            drawn = torch.zeros_like(output.attributions[:, None, :, 0], dtype=torch.bool)[:, :0]
        pairs, ends = [], None  # (subsets, logits of v(S), which of them count)
        if args.new_subsets or objective.shapley:
            target_logits, ends = values_of(batch, drawn)
            pairs.append((drawn, target_logits, torch.ones_like(drawn[..., 0])))
        if store is not None:
            pairs.append(store.pairs(batch["ids"]))
            if args.new_subsets:
                store.append(*accelerator.gather((batch["ids"], drawn, target_logits)))
        visible, target_logits, counted = (torch.cat(parts, dim=1) for parts in zip(*pairs, strict=True))
        losses = objective.loss(accelerator.unwrap_model(model), output, visible, target_logits, ends)
        return ((losses * counted).sum(dim=1) / counted.sum(dim=1)).mean()

    eval_loader = accelerator.prepare(DataLoader(eval_images, batch_size=args.per_device_eval_batch_size))

    @torch.no_grad()
    @accelerator.autocast()
    def evaluate(model):
        rows: list[torch.Tensor] = []
        for batch in tqdm(eval_loader, desc="Validating", leave=False, disable=not accelerator.is_main_process):
            output, targets = explain(model, batch, "eval"), targets_of(batch)
            attributions = target_attributions(output.attributions, targets)
            scores = rank_scores(classifier, batch["pixel_values"], attributions, targets, args.seed, batch["ids"])
            generator = subsets.KeyedGenerator((args.seed, 1), batch["ids"])
            own_law = subsets.shapley_kernel if objective.shapley else subsets.uniform
            drawn = own_law(len(attributions), 8, attributions.shape[1], generator=generator)
            losses = objective.loss(accelerator.unwrap_model(model), output, drawn, *values_of(batch, drawn))
            correct = (predicted_targets(output.logits) == targets).float()
            row = torch.stack([scores.srg, scores.lif, scores.mif, losses.mean(dim=1), correct], dim=1)
            rows.append(accelerator.gather_for_metrics(row))
        means = torch.cat(rows).mean(dim=0).tolist()
        hits = "accuracy" if "labels" in batch else "agreement"  # targets are the classifier's own predictions
        return dict(zip(("srg", "lif", "mif", objective.measure, hits), means, strict=True))

    def save(model, folder: Path, results: dict[str, Any]):
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        cards.write_explainer_card(folder, args, model.config, results, len(train_split), len(eval_split))

    results = fit(args, accelerator, model, train_images, compute_loss, evaluate, "srg", save)
    if store is not None and accelerator.is_main_process:
        store.save(Path(args.output_dir) / REPLAY_FILE)
    return results


def make_store(
    args: ExplainerArguments,
    accelerator: Accelerator,
    classifier: MaskedClassifier,
    weights: str,
    processor,
    images: ProcessedImages,
) -> ReplayStore:
    """The store of a run, filled from `replay_from` where that is given; checkpoints hold it.

    Args:
        args: of the run.
        accelerator: of the run.
        classifier: whose values are kept.
        weights: its fingerprint, before its weights were rounded.
        processor: its image processor.
        images: the training images.
    """
    rows, columns = classifier.patch_grid(images[0]["pixel_values"][None])
    names = "\n".join(image_names(images.images, args.image_column_name))
    key = {
        "classifier": weights,
        "masking": args.masking,
        "processor": digest(processor.to_json_string()),
        # Images without a file name are named by their number, which says little without what chose them.
        "names": digest(
            f"{args.dataset_name} {args.seed} {args.train_val_split} {args.max_train_samples} {args.num_views}\n{names}"
        ),
    }
    size = (len(images), rows * columns, classifier.num_labels, args.replayed_subsets)
    store = ReplayStore(*size, device=accelerator.device, key=key)
    if args.replay_from:
        store.load(args.replay_from)
        if args.new_subsets == 0 and (missing := int((store.written == 0).sum())):
            raise ValueError(f"new_subsets=0, but {args.replay_from!r} holds no values of {missing} images")
    accelerator.register_for_checkpointing(store)
    return store


def draw_subsets(args: ExplainerArguments, scores: torch.Tensor, ids: torch.Tensor, index: int) -> torch.Tensor:
    """The subsets of batch number `index`: scores [B, N] -> bool [B, M, N].

    Slot m has one size for all images of the step, in every process, so that each size is one dense batch (with the
    published sampler of ViT-Shapley images draw their own); sizes are stratified over the slots, but for those of the
    Shapley kernel, which are independent. The patches of an image are keyed by its id, so that they do not depend on
    the batch. Of an odd number of guided subsets the odd one is drawn from the scores in one batch, from 1 minus them
    in the next.
    """
    stream = (args.seed, index)
    shared = subsets.KeyedGenerator(stream, torch.zeros(1, dtype=torch.int64))
    if OBJECTIVES[args.objective].shapley and args.sampling == "uniform":
        return _from_shapley_kernel(args, scores, ids, stream, shared)
    # Stratified within each half of Algorithm 3: over all of them, the half drawn by phi would get the small sizes.
    half = (args.new_subsets + 1) // 2 if args.sampling == "guided" else args.new_subsets
    parts = [half, args.new_subsets - half]
    sizes = torch.cat([subsets.stratified_sizes(1, n, scores.shape[1], generator=shared)[0] for n in parts])
    generator = subsets.KeyedGenerator(stream, ids.to(scores.device) + 1)
    if args.sampling == "guided":
        if args.new_subsets % 2 and index % 2:
            scores = -scores
        return subsets.attribution_guided(scores, args.new_subsets, generator=generator, sizes=sizes)
    return subsets.uniform(len(scores), args.new_subsets, scores.shape[1], generator=generator, sizes=sizes)


def _from_shapley_kernel(
    args: ExplainerArguments,
    scores: torch.Tensor,
    ids: torch.Tensor,
    stream: tuple[int, int],
    shared: subsets.KeyedGenerator,
) -> torch.Tensor:
    shape = len(scores), args.new_subsets, scores.shape[1]
    generator = subsets.KeyedGenerator(stream, ids.to(scores.device) + 1)
    if args.shapley_sampler == "published":
        return subsets.shapley_kernel_published(*shape, generator=generator)
    sizes = subsets.shapley_kernel_sizes(1, (args.new_subsets + 1) // 2, shape[2], generator=shared)[0]
    return subsets.shapley_kernel(*shape, generator=generator, sizes=sizes)


@torch.no_grad()
def all_patch_features(
    accelerator: Accelerator, model: SalvageModel, images: ProcessedImages, batch_size: int
) -> torch.Tensor:
    """The frozen backbone's features of a whole data set, float16 [images, N, hidden size] on the CPU."""
    loader = accelerator.prepare(DataLoader(images, batch_size=batch_size))
    model.eval()
    with accelerator.autocast():
        batches = [
            accelerator.gather_for_metrics(model.patch_features(batch["pixel_values"]).half()).cpu()
            for batch in tqdm(loader, desc="Features", disable=not accelerator.is_main_process)
        ]
    return torch.cat(batches)
