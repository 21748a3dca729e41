"""Fine-tuning of image classifiers, also on images with patches removed (section 5.1)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from accelerate import Accelerator
from datasets import ClassLabel
from transformers import AutoModelForImageClassification, PreTrainedModel

from .. import subsets
from ..arguments import MAY_CHANGE, AtLeast, arg
from ..data.cached_images import image_loader
from ..files import fingerprint
from ..keyed_random import KeyedGenerator
from ..masking import MaskedClassifier, processing_digest
from ..modeling import BACKBONES
from ..pretrained import load_model, load_processor
from ..targets import predicted_targets
from ..vision_families import FAMILIES, freeze_mask_token
from .arguments import LoopArguments
from .images import content_of, load_splits, processed_images
from .loop import fit
from .task import Task


@dataclass
class ClassifierArguments(LoopArguments):
    """Arguments of `salvage train-classifier`."""

    model_name_or_path: str = arg(
        "",
        "The model to fine-tune: an image classifier or its backbone, convolutional too, on the Hub or in a folder.",
    )
    num_train_epochs: Annotated[int, AtLeast(1), MAY_CHANGE] = arg(
        25, "Passes over the training images (the paper: 25, then 50 with --mask_patches)."
    )
    mask_patches: bool = arg(False, "Show only a random subset of each image's patches, of a uniform size 0..N.")
    patch_size: Annotated[int | None, AtLeast(1)] = arg(
        None,
        "The side of the patches that --mask_patches hides, in pixels. Needed for models that have none, such as "
        "convolutional ones, whose hidden patches become the mean colour; the model's own when not given.",
    )
    image_size: Annotated[int | None, AtLeast(1)] = arg(
        None,
        "Resize images to squares of this side in pixels, and store it in the processor; its own size when not given.",
    )
    one_label: bool = arg(False, "Two classes become one sigmoid label: the second class against the first.")

    def __post_init__(self):
        super().__post_init__()
        if not self.model_name_or_path:
            raise ValueError("model_name_or_path is needed: the model to fine-tune")


class ClassifierTask(Task):
    """A classifier learns the labels of images; with `mask_patches`, from a random part of their patches."""

    best_metric = "score"
    command = "train-classifier"

    def __init__(self, args: ClassifierArguments, accelerator: Accelerator):
        self.args, self.accelerator = args, accelerator
        resized: dict[str, Any] = {}
        if args.image_size:
            square = {"height": args.image_size, "width": args.image_size}
            resized = {"size": square, "do_center_crop": False}
        parts = load_splits(args)
        names = class_names(parts[0], args)
        with accelerator.main_process_first():
            self.processor = load_processor(args.model_name_or_path, **resized)
            classifier = load_model(
                AutoModelForImageClassification,
                args.model_name_or_path,
                new_head=True,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                id2label=dict(enumerate(names)),
                label2id={name: index for index, name in enumerate(names)},
            )
        self.train_images, self.eval_images = (
            processed_images(args, accelerator, part, self.processor, classifier.config) for part in parts
        )
        freeze_mask_token(classifier.base_model)
        self.model: MaskedClassifier = self._masked(classifier)
        self.eval_loader = accelerator.prepare(image_loader(self.eval_images, args.per_device_eval_batch_size))

    def _masked(self, classifier: PreTrainedModel) -> MaskedClassifier:
        """The classifier on partial images; raises ValueError where patches are to be hidden, and it has none."""
        batch_size, patch_size = self.args.per_device_train_batch_size, self.args.patch_size
        if classifier.config.model_type in FAMILIES:
            return MaskedClassifier(classifier, patch_size=patch_size)
        if patch_size is None and not self.args.mask_patches and classifier.config.model_type not in BACKBONES:
            patch_size = 1  # nothing is hidden, and patches of one pixel divide every image
        v = MaskedClassifier(classifier, patch_size=patch_size)
        pixels = self.train_images[0]["pixel_values"][None]
        rows, columns = v.patch_grid(pixels)
        # A batch must be one forward, because the norms of convolutional models see the whole of it.
        chunk_size = batch_size * max(rows * columns, pixels[0, 0].numel() // 256)
        return MaskedClassifier(classifier, patch_size=patch_size, chunk_size=chunk_size)

    @property
    def knows_patches(self) -> bool:
        """Whether the model has patches, its own or given ones."""
        return self.model.config.model_type in BACKBONES or self.args.patch_size is not None

    def made_with(self) -> dict[str, str]:
        """Digests of the backbone that training starts from, image processor and images."""
        assert isinstance(self.model, MaskedClassifier)
        return {
            "backbone_content": fingerprint(self.model.classifier.base_model),
            "processor_content": processing_digest(self.processor),
            "training_images": content_of(self.train_images),
            "validation_images": content_of(self.eval_images),
        }

    def loss(self, model: torch.nn.Module, batch: dict[str, torch.Tensor], step: int) -> torch.Tensor:
        """Cross-entropy of the classifier's prediction from the visible patches."""
        logits = model(batch["pixel_values"], self.draw_subsets(batch, step))[:, 0]
        return classification_loss(logits, batch["labels"])

    def draw_subsets(self, batch: dict[str, torch.Tensor], step: int) -> torch.Tensor:
        """One subset per image, bool [B, 1, N]: all patches, or with `mask_patches` a uniform random part of them."""
        rows, columns = self.model.patch_grid(batch["pixel_values"])
        shape = (len(batch["ids"]), 1, rows * columns)
        if not self.args.mask_patches:
            return torch.ones(shape, dtype=torch.bool)
        keys = batch["ids"].cpu()
        # Where hidden patches are dropped, all images of a step share one size, for a dense batch. Elsewhere each has
        # its own, so that the batch norms of a convolutional model see in training what they see later.
        shared = self.model.family is not None
        size_keys = torch.zeros(1, dtype=torch.int64) if shared else keys
        size_generator = KeyedGenerator("classifier training sizes", self.args.seed, step, keys=size_keys)
        # A size may be 0, because v(empty) must be learned too.
        sizes = subsets.uniform_sizes(len(size_keys), 1, shape[-1] + 1, generator=size_generator) - 1
        generator = KeyedGenerator("classifier training subsets", self.args.seed, step, keys=keys)
        return subsets.uniform(*shape, generator=generator, sizes=sizes[0] if shared else sizes)

    @torch.no_grad()
    def evaluate(self, model: torch.nn.Module) -> dict[str, float]:
        """Accuracy with all, half and a quarter of the patches, and the "score" that selects the best model.

        Of a model without patches, where none are hidden in training, the accuracy with whole images alone.
        """
        v = self.accelerator.unwrap_model(model, keep_torch_compile=False)
        names = ("accuracy", "accuracy_half", "accuracy_quarter") if self.knows_patches else ("accuracy",)
        rows = []
        for batch in self.eval_loader:
            grid = v.patch_grid(batch["pixel_values"])
            num_patches = grid[0] * grid[1]
            sizes = torch.tensor([num_patches, num_patches // 2, num_patches // 4])[: len(names)]
            generator = KeyedGenerator("classifier validation subsets", self.args.seed, keys=batch["ids"].cpu())
            drawn = subsets.uniform(len(batch["ids"]), len(names), num_patches, generator=generator, sizes=sizes)
            logits = v.logits(batch["pixel_values"], drawn)
            correct = [predicted_targets(logits[:, slot]) == batch["labels"] for slot in range(len(names))]
            rows.append(self.accelerator.gather_for_metrics(torch.stack(correct, dim=1).float()))
        means = torch.cat(rows).mean(dim=0).tolist()
        return {
            **dict(zip(names, means, strict=True)),
            "score": sum(means) / len(means) if self.args.mask_patches else means[0],
        }

    def save(self, model: torch.nn.Module, folder: Path, results: dict[str, Any]) -> None:
        """Writes the classifier and its image processor."""
        assert isinstance(model, MaskedClassifier)
        model.classifier.save_pretrained(folder)
        self.processor.save_pretrained(folder)


def train_classifier(args: ClassifierArguments, task: type[ClassifierTask] = ClassifierTask) -> dict[str, Any]:
    """Fine-tunes a classifier (section 5.1), writes it with its processor to `output_dir`, and returns its scores.

    Args:
        args: the arguments of the run.
        task: the class of the task; `evaluation.partial_images` has one that describes the finished classifier.
    """
    return fit(task, args)


def class_names(dataset, args: ClassifierArguments) -> list[str]:
    """The names of the classifier's labels: the data set's classes, with `one_label` the second of two."""
    feature = dataset.features.get(args.label_column_name)
    if not isinstance(feature, ClassLabel):
        raise ValueError(f"column {args.label_column_name!r} holds no class labels with names, but {feature}")
    names = feature.names
    if args.one_label:
        if len(names) != 2:
            raise ValueError(f"one_label needs two classes, the data set has {len(names)}: {names}")
        return names[1:]
    if len(names) < 2:
        raise ValueError(f"a classifier needs at least two classes, the data set has {len(names)}: {names}")
    return names


def classification_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy, binary with one label: logits [B, K], labels [B]."""
    if logits.shape[-1] == 1:
        return torch.nn.functional.binary_cross_entropy_with_logits(logits[:, 0].float(), labels.float())
    return torch.nn.functional.cross_entropy(logits.float(), labels)
