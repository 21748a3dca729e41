"""Fine-tuning of an image classifier, also on images with patches removed (section 5.1)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import ClassLabel
from torch.utils.data import DataLoader
from transformers import AutoImageProcessor, AutoModelForImageClassification

from . import subsets
from .data import ProcessedImages
from .masking import MaskedClassifier, predicted_targets
from .training import LoopArguments, arg, fit, load_splits, make_accelerator, with_found_batch_size


@dataclass
class ClassifierArguments(LoopArguments):
    """Arguments of scripts/train_classifier.py."""

    model_name_or_path: str = arg(
        "", "The model to fine-tune: a DINOv2 backbone or classifier, on the Hub or in a folder."
    )
    num_train_epochs: int = arg(25, "Passes over the training images (the paper: 25, then 50 with --mask_patches).")
    mask_patches: bool = arg(False, "Show a uniform random subset of the patches; the sizes are 0..N.")
    image_size: int | None = arg(
        None, "Side of the square that images are resized to and the model's processor keeps; its own when not given."
    )
    one_label: bool = arg(False, "Two classes as one sigmoid label: the second class against the first.")

    def __post_init__(self):
        super().__post_init__()
        if not self.model_name_or_path:
            raise ValueError("model_name_or_path is needed: the model to fine-tune")


@with_found_batch_size
def train_classifier(args: ClassifierArguments) -> dict[str, Any]:
    """Fine-tunes a classifier; writes it with its processor to `output_dir`, and returns its scores."""
    accelerator = make_accelerator(args)
    with accelerator.main_process_first():
        resized: dict[str, Any] = {}
        if args.image_size:
            square = {"height": args.image_size, "width": args.image_size}
            resized = {"size": square, "do_center_crop": False}
        processor = AutoImageProcessor.from_pretrained(args.model_name_or_path, **resized)
        parts = load_splits(args)
        feature = parts[0].features.get(args.label_column_name)
        if not isinstance(feature, ClassLabel):
            raise ValueError(f"column {args.label_column_name!r} holds no class labels with names, but {feature}")
        names = feature.names
        if args.one_label:
            if len(names) != 2:
                raise ValueError(f"one_label needs two classes, the data set has {len(names)}: {names}")
            names = names[1:]
        elif len(names) < 2:
            raise ValueError(f"a classifier needs at least two classes, the data set has {len(names)}: {names}")
        classifier = AutoModelForImageClassification.from_pretrained(
            args.model_name_or_path,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            id2label=dict(enumerate(names)),
            label2id={name: index for index, name in enumerate(names)},
        )
    columns = args.image_column_name, args.label_column_name
    train_images, eval_images = (ProcessedImages(part, processor, classifier.config, *columns) for part in parts)
    mask_token = getattr(classifier.base_model.embeddings, "mask_token", None)
    if mask_token is not None:
        mask_token.requires_grad_(False)

    def subsets_of_batch(v, batch, index):
        rows, columns = v.patch_grid(batch["pixel_values"])
        shape = (len(batch["ids"]), 1, rows * columns)
        if not args.mask_patches:
            return torch.ones(shape, dtype=torch.bool)
        stream = (args.seed, index)
        shared = subsets.KeyedGenerator(stream, torch.zeros(1, dtype=torch.int64))
        # One size for the whole step (a dense batch), the empty subset among them: v must be defined there too.
        size = subsets.uniform_sizes(1, 1, shape[-1] + 1, generator=shared)[0] - 1
        return subsets.uniform(*shape, generator=subsets.KeyedGenerator(stream, batch["ids"].cpu() + 1), sizes=size)

    masked = MaskedClassifier(classifier)

    def compute_loss(model, batch, index):
        logits = model(batch["pixel_values"], subsets_of_batch(masked, batch, index))[:, 0]
        return classification_loss(logits, batch["labels"])

    eval_loader = accelerator.prepare(DataLoader(eval_images, batch_size=args.per_device_eval_batch_size))

    @torch.no_grad()
    def evaluate(model):
        """Accuracy with all patches, with a half and with a quarter of them; what selects the best model."""
        v = accelerator.unwrap_model(model)
        rows = []
        for batch in eval_loader:
            grid = v.patch_grid(batch["pixel_values"])
            num_patches = grid[0] * grid[1]
            sizes = torch.tensor([num_patches, num_patches // 2, num_patches // 4])
            generator = subsets.KeyedGenerator(args.seed, batch["ids"].cpu())
            drawn = subsets.uniform(len(batch["ids"]), 3, num_patches, generator=generator, sizes=sizes)
            logits = v.logits(batch["pixel_values"], drawn)
            correct = [predicted_targets(logits[:, slot]) == batch["labels"] for slot in range(3)]
            rows.append(accelerator.gather_for_metrics(torch.stack(correct, dim=1).float()))
        means = torch.cat(rows).mean(dim=0).tolist()
        return {
            **dict(zip(("accuracy", "accuracy_half", "accuracy_quarter"), means, strict=True)),
            "score": sum(means) / 3 if args.mask_patches else means[0],
        }

    def save(model, folder: Path, results: dict[str, Any]):
        model.classifier.save_pretrained(folder)
        processor.save_pretrained(folder)

    return fit(args, accelerator, masked, train_images, compute_loss, evaluate, "score", save)


def classification_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy, binary with one label: logits [B, K], labels [B]."""
    if logits.shape[-1] == 1:
        return torch.nn.functional.binary_cross_entropy_with_logits(logits[:, 0].float(), labels.float())
    return torch.nn.functional.cross_entropy(logits.float(), labels)
