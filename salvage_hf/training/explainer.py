"""Training of explainers against a frozen classifier (sections 4 and 5.1)."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from ..arguments import AtLeast, arg
from ..data.cached_images import image_loader
from ..data.images import ProcessedImages
from ..faithfulness import rank_scores
from ..files import digest, fingerprint
from ..hub import cards
from ..keyed_random import KeyedGenerator
from ..masking import MaskedClassifier, MaskingArguments, processing_digest
from ..modeling import BACKBONES, SalvageModel
from ..objectives import OBJECTIVES, SubsetValues
from ..subsets import LAWS, uniform
from ..targets import predicted_targets, target_attributions
from ..tensors import positive_number
from ..vision_families import freeze_mask_token
from .arguments import LoopArguments
from .backbones import new_explainer
from .images import content_of, load_splits, name_of, processed_images
from .loop import fit
from .task import Task

#: Subsets per image on which the loss is validated.
NUM_VALIDATION_SUBSETS = 8

#: The most images that are tried one by one when the cause of a loss that is not finite is looked for.
MOST_ASKED_FOR_A_CAUSE = 256


@dataclass
class ExplainerArguments(MaskingArguments, LoopArguments):
    """Arguments of `salvage train`.

    The defaults are the paper's recipe but for `guidance_exponent`, which is 1 in the paper.
    """

    model_name_or_path: str = arg("", "The frozen classifier to explain: a name on the Hub or a folder.")
    explainer_backbone: str | None = arg(
        None,
        "The model whose backbone the explainer starts from, a name on the Hub or a folder: one of the types "
        f"{', '.join(BACKBONES)}. The classifier's own when not given, where it is of one of these.",
    )
    objective: Literal[tuple(OBJECTIVES)] = arg("salvage", "What is minimised.")  # type: ignore[valid-type]
    sampling: Literal[tuple(LAWS)] | None = arg(  # type: ignore[valid-type]
        None,
        "The law of the subsets: guided by the attributions (Algorithm 3), uniform, or the Shapley kernel's; the "
        "objective's own, as published, when not given.",
    )
    learning_rate: float | None = arg(
        None,
        "The highest learning rate of AdamW; the objective's own when not given, as published ("
        + ", ".join(f"{name} {objective.learning_rate:g}" for name, objective in OBJECTIVES.items())
        + ").",
    )
    guidance_exponent: float | None = arg(
        None,
        "The power of the weights by which the guided law draws: 1 is Algorithm 3 as published, more shows the patches "
        "of the highest and of the lowest attributions sooner; the objective's own when not given ("
        + ", ".join(f"{name} {objective.guidance_exponent:g}" for name, objective in OBJECTIVES.items())
        + "). The other laws have none.",
    )
    new_subsets: Annotated[int, AtLeast(1)] = arg(32, "Subsets per image and step, each a forward of the classifier.")
    target: Literal["label", "predicted"] = arg(
        "label",
        "The class whose attributions guide the sampling and are validated: the image's label, or what the classifier "
        "predicts for it.",
    )
    freeze_backbone: bool = arg(False, "Train the mask transformer alone, on features that are computed once.")
    num_views: Annotated[int, AtLeast(1)] = arg(
        1, "Training items per image: itself, then random parts of it, half of them mirrored. An epoch passes over all."
    )

    def __post_init__(self):
        super().__post_init__()
        objective = OBJECTIVES[self.objective]
        self.sampling = self.sampling or objective.sampling
        if self.learning_rate is None:
            self.learning_rate = objective.learning_rate
        if LAWS[self.sampling].guided:
            exponent = objective.guidance_exponent if self.guidance_exponent is None else self.guidance_exponent
            self.guidance_exponent = positive_number("guidance_exponent", exponent)
        elif self.guidance_exponent is not None:
            raise ValueError(
                f"guidance_exponent={self.guidance_exponent:g} is for guided sampling only, sampling={self.sampling!r} "
                "reads no attributions: leave it out"
            )
        if not self.model_name_or_path:
            raise ValueError("model_name_or_path is needed: the classifier to explain")


class ExplainerTask(Task):
    """An explainer learns what a frozen classifier predicts from partial images."""

    best_metric = "srg"
    command = "train"

    def __init__(self, args: ExplainerArguments, accelerator: Accelerator):
        self.args, self.accelerator, self.objective = args, accelerator, OBJECTIVES[args.objective]
        with accelerator.main_process_first():
            self.classifier = MaskedClassifier.from_pretrained(
                args.model_name_or_path,
                masking=args.masking,
                patch_size=args.patch_size,
                mixed_precision=accelerator.mixed_precision,
            ).to(accelerator.device)
            # Before the images are read, because it refuses classifiers that need another backbone.
            model = new_explainer(
                self.classifier,
                args.explainer_backbone,
                objective=args.objective,
                paired_values=self.objective.paired_values,
            ).to(accelerator.device)
        self.processor = self.classifier.processor
        config = self.classifier.config if args.target == "label" else None
        train_split, eval_split = load_splits(args)
        self.train_images = processed_images(args, accelerator, train_split, self.processor, config, args.num_views)
        self.eval_images = processed_images(args, accelerator, eval_split, self.processor, config)
        freeze_mask_token(model.backbone)
        if args.freeze_backbone:
            model.backbone.requires_grad_(False)
            self.patch_features = {
                images: all_patch_features(accelerator, model, images, args.per_device_eval_batch_size)
                for images in (self.train_images, self.eval_images)
            }
        self.model: SalvageModel = model
        self.eval_loader = accelerator.prepare(image_loader(self.eval_images, args.per_device_eval_batch_size))

    def made_with(self) -> dict[str, str]:
        """Digests of classifier, image processor and images, and of a backbone that is not the classifier's own."""
        backbone = {}
        if self.args.explainer_backbone is not None:
            model = self.model
            backbone["backbone_content"] = digest(fingerprint(model.backbone), repr(model.config.channel_map))
        return {
            **backbone,
            "classifier_content": fingerprint(self.classifier.classifier),
            "processor_content": processing_digest(self.processor),
            "training_images": content_of(self.train_images),
            "validation_images": content_of(self.eval_images),
        }

    def loss(self, model: torch.nn.Module, batch: dict[str, torch.Tensor], step: int) -> torch.Tensor:
        """The mean of the objective over images and subsets: the paper's training step (sections 4.1 and 4.2)."""
        output = self.explain(model, batch, self.train_images)  # phi+ and phi- of every patch and class (eq. 3)
        drawn = self.draw_subsets(output, batch, step)  # S, guided by the attributions (Algorithm 3)
        values = self.ask_classifier(batch, drawn)  # v(S)
        losses = self.objective.loss(self.bare(model), output, drawn, values)  # u(S) against v(S) (eqs. 4 and 5)
        return losses.mean(dim=1).mean()  # over the subsets of an image, then over the images

    def explain(self, model: torch.nn.Module, batch: dict[str, torch.Tensor], images: ProcessedImages):
        """The explainer's output for whole images, from their pixels or from features that were computed once."""
        if self.args.freeze_backbone:
            cached = self.patch_features[images][batch["ids"].cpu()]
            return model(patch_features=cached.to(self.accelerator.device, torch.float32, non_blocking=True))
        return model(batch["pixel_values"])

    def draw_subsets(self, output, batch: dict[str, torch.Tensor], step: int) -> torch.Tensor:
        """The subsets of a training step, bool [B, M, N]."""
        # The loop finds a loss that is not finite at its next log, and names the cause: drawing must not fail before.
        scores = target_attributions(output.attributions.detach().nan_to_num(), self.targets(batch))
        return draw_subsets(self.args, scores, batch["ids"], step)

    def ask_classifier(self, batch: dict[str, torch.Tensor], drawn: torch.Tensor) -> SubsetValues:
        """v(S) of subsets bool [B, M, N], and v of no patch and of all patches where the objective asks for them."""
        if not self.objective.asks_ends:
            return SubsetValues(self.classifier.logits(batch["pixel_values"], drawn).float())
        ends = torch.tensor([False, True], device=drawn.device)[:, None].expand(len(drawn), -1, drawn.shape[-1])
        logits = self.classifier.logits(batch["pixel_values"], torch.cat([drawn, ends], dim=1)).float()
        return SubsetValues(*logits.split([drawn.shape[1], 2], dim=1))

    def targets(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """The classes whose attributions guide the sampling and are validated, int64 [B]."""
        if "labels" in batch:
            return batch["labels"]
        return predicted_targets(self.classifier.whole_logits(batch["pixel_values"]))

    def bare(self, model: torch.nn.Module) -> SalvageModel:
        """The model without accelerate's wrapper."""
        return self.accelerator.unwrap_model(model, keep_torch_compile=False)

    @torch.no_grad()
    def evaluate(self, model: torch.nn.Module) -> dict[str, float]:
        """SRG, LIF and MIF of the maps, the loss on validation subsets, and how often u(N) predicts the target."""
        rows: list[torch.Tensor] = []
        law = LAWS[self.objective.validation_law]
        hidden = not self.accelerator.is_main_process
        for batch in tqdm(self.eval_loader, desc="Validating", leave=False, disable=hidden):
            output, targets = self.explain(model, batch, self.eval_images), self.targets(batch)
            maps = target_attributions(output.attributions, targets)
            scores = rank_scores(self.classifier, batch["pixel_values"], maps, targets, self.args.seed, batch["ids"])
            generator = KeyedGenerator("validation subsets", self.args.seed, keys=batch["ids"])
            drawn = law.draw(maps, NUM_VALIDATION_SUBSETS, generator)
            losses = self.objective.loss(self.bare(model), output, drawn, self.ask_classifier(batch, drawn))
            correct = (predicted_targets(output.logits) == targets).float()
            row = torch.stack([scores.srg, scores.lif, scores.mif, losses.mean(dim=1), correct], dim=1)
            rows.append(self.accelerator.gather_for_metrics(row))
        means = torch.cat(rows).mean(dim=0).tolist()
        hit_rate = "accuracy" if self.args.target == "label" else "agreement"  # with the classifier's predictions
        return dict(zip(("srg", "lif", "mif", self.objective.measure, hit_rate), means, strict=True))

    @torch.no_grad()
    def why_not_finite(self, images: ProcessedImages, indices: Iterable[int]) -> str:
        """Names an image for which the classifier's predictions are NaN or infinite."""
        for index in itertools.islice(indices, MOST_ASKED_FOR_A_CAUSE):
            pixels = images.batch([index])["pixel_values"].to(self.accelerator.device)
            rows, columns = self.classifier.patch_grid(pixels)
            generator = KeyedGenerator("subsets of a loss that is not finite", keys=torch.tensor([index]))
            drawn = uniform(1, NUM_VALIDATION_SUBSETS, rows * columns, generator=generator)
            drawn[:, 0], drawn[:, 1] = False, True
            if not self.classifier.logits(pixels, drawn).isfinite().all():
                return (
                    f"the classifier's predictions for image {name_of(images, index)} are NaN or infinite, which is "
                    "the fault of the classifier, its image processor or the mixed precision"
                )
        return ""

    def save(self, model: torch.nn.Module, folder: Path, results: dict[str, Any]) -> None:
        """Writes the explainer with its code, the image processor and the model card."""
        assert isinstance(model, SalvageModel)
        model.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        num_images = len(self.train_images.images), len(self.eval_images)
        cards.write_explainer_card(folder, self.args, model.config, results, *num_images)


def train_explainer(args: ExplainerArguments, task: type[ExplainerTask] = ExplainerTask) -> dict[str, Any]:
    """Trains an explainer (sections 4 and 5.1), writes it to `output_dir`, and returns its scores.

    Args:
        args: the arguments of the run.
        task: the class of the task; a subclass can measure the parts of a step.
    """
    return fit(task, args)


def draw_subsets(args: ExplainerArguments, scores: torch.Tensor, ids: torch.Tensor, step: int) -> torch.Tensor:
    """The subsets of a training step: the attributions of the target classes [B, N] -> bool [B, M, N].

    Slot m has one size for all images of the step, in every process, so that each size is one dense batch; only the
    published sampler of the Shapley kernel draws a size per image. The random numbers of an image are keyed by its id,
    so that they do not depend on the batch. If the number of guided subsets is odd, the half drawn in proportion to the
    scores has one more in even steps, and the other half in odd steps.
    """
    assert args.sampling is not None  # `ExplainerArguments` has filled it in
    law = LAWS[args.sampling]
    shared_key = torch.zeros(1, dtype=torch.int64)
    sizes = law.shared_sizes(
        args.new_subsets, scores.shape[1], KeyedGenerator("training sizes", args.seed, step, keys=shared_key)
    )
    if args.new_subsets % 2 and step % 2:
        scores = -scores
    generator = KeyedGenerator("training subsets", args.seed, step, keys=ids.to(scores.device))
    options = {"exponent": args.guidance_exponent} if law.guided else {}
    return law.draw(scores, args.new_subsets, generator, sizes, **options)


@torch.no_grad()
def all_patch_features(
    accelerator: Accelerator, model: SalvageModel, images: ProcessedImages, batch_size: int
) -> torch.Tensor:
    """The frozen backbone's features of a whole data set, float16 [images, N, hidden size] on the CPU."""
    loader = accelerator.prepare(image_loader(images, batch_size))
    model.eval()
    with accelerator.autocast():
        batches = [
            accelerator.gather_for_metrics(model.patch_features(batch["pixel_values"]).half()).cpu()
            for batch in tqdm(loader, desc="Features", disable=not accelerator.is_main_process)
        ]
    return torch.cat(batches)
