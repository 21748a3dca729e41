"""Attribution methods side by side on the same images: scores, maps and cost, kept whole after every batch."""

import functools
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, Subset
from torch.utils.flop_counter import flop_registry
from tqdm.auto import tqdm
from transformers import AutoImageProcessor, AutoModel

from . import attribution_methods
from .data import ProcessedImages, content_digest, image_names, load_images, to_pictures
from .faithfulness import rank_scores, relative_scores
from .localization import relevance_mass_accuracy, relevance_rank_accuracy, upsample
from .masking import MaskedClassifier, digest, fingerprint, predicted_targets, target_attributions
from .tables import SCORES, score_table
from .training import arg, check_least, check_writable

logger = logging.getLogger(__name__)

CURVES = ("lif", "mif", "r_lif", "r_mif")
#: What rank_scores and relative_scores give of an image.
RANK = ("srg", "lif", "mif", "lif_curve", "mif_curve")
RELATIVE = ("r_srg", "r_lif", "r_mif", "r_srg_stderr", "r_lif_curve", "r_mif_curve")
#: Methods that ask for the values of `sampling_budget` subsets.
SAMPLING = ("rise", "kernelshap", "svarm")
#: How many pictures of scored images, and how many misclassified ones, are kept for the report.
NUM_EXAMPLES, NUM_MISCLASSIFIED = 10, 6


@dataclass
class BenchmarkArguments:
    """Arguments of scripts/benchmark.py."""

    model_name_or_path: str = arg("", "The classifier: a name on the Hub or a folder.")
    explainer: str = arg("", "The Salvage model, for the method salvage: a name on the Hub or a folder.")
    vit_shapley: str = arg("", "The ViT-Shapley model, for the method vit_shapley.")
    methods: list[str] = field(
        default_factory=lambda: ["salvage", "last_attention", "attention_rollout", "random"],
        metadata={"help": f"Methods to compare: {', '.join(attribution_methods.REGISTRY)}."},
    )
    dataset_name: str | None = arg(None, "A data set on the Hub.")
    dataset_split: str = arg("validation", "Its split.")
    validation_dir: str | None = arg(None, "A folder of images, one sub-folder a class.")
    mask_dir: str | None = arg(
        None, "A folder with the annotated region of the image CLASS/NAME.* in CLASS/NAME.png, for RRA and RMA."
    )
    image_column_name: str = arg("image", "Column of the images.")
    label_column_name: str = arg("label", "Column of the labels.")
    on_bad_image: str = arg("refuse", "What to do with unreadable images: refuse or skip.")
    max_eval_samples: int | None = arg(None, "Evaluate on this many random images only.")
    max_rank_samples: int | None = arg(None, "SRG, LIF and MIF on the first of them only; 0: not at all.")
    max_relative_samples: int | None = arg(None, "The relative scores on the first of them only; 0: not at all.")
    masking: str = arg("drop", "How patches are hidden from the classifier.")
    n_masks: int = arg(128, "Draws per size and direction of the relative scores.")
    sampling_budget: int = arg(2000, f"Subsets an image of the methods {', '.join(SAMPLING)}.")
    budget: int | None = arg(None, "Forwards an image for the relative scores, in place of n_masks.")
    per_device_eval_batch_size: int = arg(32, "Images a batch and process.")
    seed: int = arg(0, "Seed of everything random.")
    output_dir: str = arg("outputs/benchmark", "Where results.json, and maps/ with every method's, are written.")

    def __post_init__(self):
        if not self.model_name_or_path:
            raise ValueError("model_name_or_path is needed: the classifier to explain")
        unknown = [name for name in self.methods if name not in attribution_methods.REGISTRY]
        if unknown:
            raise ValueError(
                f"no attribution method {unknown[0]!r}; there are {', '.join(attribution_methods.REGISTRY)}"
            )
        least = {"max_eval_samples": 1, "max_rank_samples": 0, "max_relative_samples": 0}
        check_least(self, {**least, "n_masks": 1, "sampling_budget": 1, "budget": 5, "per_device_eval_batch_size": 1})
        if self.max_rank_samples == 0 and self.max_relative_samples == 0 and self.mask_dir is None:
            raise ValueError("nothing is scored: max_rank_samples and max_relative_samples are 0, and no mask_dir")
        if "salvage" in self.methods and not self.explainer:
            raise ValueError("the method salvage needs explainer=, a Salvage model")
        if "vit_shapley" in self.methods and not self.vit_shapley:
            raise ValueError("the method vit_shapley needs vit_shapley=, a model trained by its objective")


def run_benchmark(args: BenchmarkArguments) -> dict[str, Any]:
    """Scores every method on every image; a run that was stopped continues after the last finished batch.

    Returns:
        What results.json holds: the images' "ids" and "targets", in random order; for each method its scores per image
        (null where undefined or not asked for; scores asked for of no image are left out), mean curves and cost; and
        what classifier and explainers predict for all images.

    Raises:
        ValueError: where `output_dir` holds results of other images, settings or weights of the classifier, or where
            an explainer is not of the classifier's labels.
    """
    check_writable(args.output_dir)
    accelerator = Accelerator()
    # Of v(S) alone: a bfloat16 gradient, or difference of two logits, would be another, weaker method.
    autocast_dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision)
    with accelerator.main_process_first():
        v = MaskedClassifier.from_pretrained(
            args.model_name_or_path, masking=args.masking, autocast_dtype=autocast_dtype
        ).to(accelerator.device)
        processor = AutoImageProcessor.from_pretrained(args.model_name_or_path)
        dataset = load_images(
            args.dataset_name, args.validation_dir, args.dataset_split, args.image_column_name, args.on_bad_image
        )
    columns = args.image_column_name, args.label_column_name
    images = ProcessedImages(dataset, processor, v.config, *columns, mask_dir=args.mask_dir)
    assert images.labels is not None  # it was given the config
    shuffled = torch.randperm(len(images), generator=torch.Generator().manual_seed(args.seed))
    chosen = shuffled[: args.max_eval_samples].tolist()

    paths = {"salvage": args.explainer, "vit_shapley": args.vit_shapley}
    explainers = {
        name: AutoModel.from_pretrained(path, dtype=torch.float32).to(accelerator.device).eval()
        for name, path in paths.items()
        if name in args.methods
    }
    made_with: dict[str, dict[str, Any]] = {name: {} for name in args.methods}
    made_with |= {name: {"weights": fingerprint(explainer)} for name, explainer in explainers.items()}
    options: dict[str, dict[str, Any]] = {name: {"explainer": model} for name, model in explainers.items()}
    for name, explainer in explainers.items():  # one that does not fit is refused before anything is measured
        attribution_methods.load(name, classifier=v, explainer=explainer)
    for name in SAMPLING:
        if name in args.methods:
            options[name] = made_with[name] = {"budget": args.sampling_budget}

    names = image_names(dataset, args.image_column_name)
    targets = [images.labels[index] for index in chosen]
    settings = {
        "classifier": fingerprint(v.classifier),
        "processor": digest(processor.to_json_string()),
        "masking": args.masking,
        "precision": accelerator.mixed_precision,
        "rank": {"images": len(chosen[: args.max_rank_samples])},
        "relative": {
            **({"budget": args.budget} if args.budget else {"n_masks": args.n_masks}),
            "images": len(chosen[: args.max_relative_samples]),
        },
        "regions": args.mask_dir is not None,
        "content": content_digest(images, chosen),
        "seed": args.seed,
    }
    measured = {"settings": settings, "ids": [names[index] for index in chosen], "targets": targets}
    shown = examples(targets, NUM_EXAMPLES)
    about = {
        "examples": shown,
        "label_names": [v.config.id2label[index] for index in range(v.num_labels)],
        "grid_size": list(v.patch_grid(images[0]["pixel_values"][None])),
    }
    path = Path(args.output_dir) / "results.json"
    results = earlier_results(path, measured) or {**measured, **about, "methods": {}, "classification": {}}
    for name in args.methods:
        before = results["methods"].get(name, {}).get("made_with", made_with[name])
        if before == made_with[name]:
            continue
        if name not in explainers:
            raise ValueError(
                f"{str(path)!r} holds {name} with {before}, here {made_with[name]}; give another output_dir"
            )
        logger.warning("%s is scored anew: the explainer has other weights than before", name)
        del results["methods"][name]  # no result any more, should this run be stopped
    everything = content_digest(images, list(range(len(images))))
    if results["classification"].get("content") != everything:
        results["classification"] = {"content": everything, "labels": images.labels}
        results.pop("misclassified", None)
    write = accelerator.is_main_process
    accelerator.wait_for_everyone()  # all have read before one writes
    if write:
        (path.parent / "maps").mkdir(exist_ok=True)
        _write_examples(path.parent, images, [chosen[position] for position in shown])
        write_json(path, results)
    for name, explainer in {"classifier": None, **explainers}.items():
        weights = settings["classifier"] if explainer is None else made_with[name]["weights"]
        if results["classification"].get(name, {}).get("weights") == weights:
            continue
        predicted = predictions(accelerator, v, explainer, images, args.per_device_eval_batch_size, name)
        results["classification"][name] = {"weights": weights, "predictions": predicted}
        if write and name == "salvage":
            results["misclassified"] = _write_misclassified(path.parent, images, names, explainer, predicted)
        if write:
            write_json(path, results)
    for name in args.methods:
        method = attribution_methods.load(name, classifier=v, seed=args.seed, **options.get(name, {}))
        key = digest(json.dumps([measured, made_with[name]]))
        scored = score_method(accelerator, v, method, Subset(images, chosen), args, name, key)
        results["methods"][name] = _for_json(scored, made_with[name])
        if write:
            write_json(path, results)
    return results


def titled_scores(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Title of a method -> its entry in results.json, in the registry's order."""
    methods = results["methods"]
    return {info.title: methods[name] for name, info in attribution_methods.REGISTRY.items() if name in methods}


def results_table(results: dict[str, Any], columns: tuple[str, ...] = tuple(SCORES)) -> str:
    """Scores of all methods as Markdown."""
    return score_table({"": titled_scores(results)}, columns).markdown()


def earlier_results(path: Path, measured: dict[str, Any]) -> dict[str, Any] | None:
    """What an earlier run has left, None where it has left nothing.

    Raises:
        ValueError: where it measured other images, or measured them otherwise: one table cannot hold both.
    """
    if not path.is_file():
        return None
    results = json.loads(path.read_text())
    changed = [name for name in measured if results.get(name) != measured[name]]
    if changed:
        raise ValueError(
            f"{str(path)!r} holds results with other {' and '.join(changed)}: there {results.get('settings')} on "
            f"{len(results['ids'])} images, here {measured['settings']} on {len(measured['ids'])}; "
            "give another output_dir"
        )
    return results


def score_method(
    accelerator: Accelerator,
    v: MaskedClassifier,
    method: attribution_methods.Method,
    images: Subset,
    args: BenchmarkArguments,
    name: str,
    key: str,
) -> dict[str, torch.Tensor]:
    """Scores of one method, kept in maps/NAME.safetensors after every batch and continued from there.

    Args:
        accelerator: whose processes share the images.
        v: the classifier.
        method: what is scored.
        images: of them, in their order.
        args: of the benchmark.
        name: of the method.
        key: a digest of all that the scores depend on: a file with another one is begun anew.

    Returns:
        A row per image: "attributions" [I, N]; "seconds" and "forwards" [I]; `RANK` and `RELATIVE`, where asked for at
        all, curves [I, N] and others [I], NaN where undefined or not asked for; "rra" and "rma" [I] with masks.
    """
    path = Path(args.output_dir, "maps", f"{name}.safetensors")
    scored = _earlier_rows(path, key)
    accelerator.wait_for_everyone()  # all have read before one writes
    done = len(scored["attributions"]) if scored else 0
    if done == len(images):
        return scored
    asked_rank, asked_relative = (
        torch.tensor(images.indices[:number], dtype=torch.int64, device=accelerator.device)
        for number in (args.max_rank_samples, args.max_relative_samples)
    )
    left = Subset(images, range(done, len(images)))
    loader = accelerator.prepare(DataLoader(left, batch_size=args.per_device_eval_batch_size))
    bar = tqdm(total=len(images), initial=done, desc=name, unit="image", disable=not accelerator.is_main_process)
    forwards = scored["forwards"][:1].to(accelerator.device) if scored else None
    for batch in loader:
        if forwards is None:
            cost = count_forwards(v, method, batch["pixel_values"][:1], batch["labels"][:1])
            # Of the first image of all, which the first process has.
            forwards = accelerator.gather(torch.tensor([cost], device=accelerator.device))[:1]
        start = time.perf_counter()
        attributions = method(batch["pixel_values"], batch["labels"])
        if attributions.is_cuda:
            torch.cuda.synchronize()
        seconds = (time.perf_counter() - start) / len(attributions)
        if not (finite := attributions.isfinite().all(dim=1)).all():
            assert isinstance(images.dataset, ProcessedImages)
            names = image_names(images.dataset.images, args.image_column_name)
            bad = [names[index] for index in batch["ids"][~finite].tolist()]
            raise ValueError(f"{name} gives NaN or infinite attributions of {bad[:10]}: leave it, or them, out")
        rows = _score_batch(v, attributions, batch, args, asked_rank, asked_relative)
        rows["seconds"] = torch.full_like(attributions[:, 0], seconds)
        rows["forwards"] = forwards.expand(len(rows["seconds"])).contiguous()
        gathered = {column: accelerator.gather_for_metrics(values).cpu() for column, values in rows.items()}
        scored = {column: torch.cat([scored[column], new]) if scored else new for column, new in gathered.items()}
        bar.update(len(gathered["seconds"]))
        if accelerator.is_main_process:
            _save_tensors(path, scored, {"key": key})
    bar.close()
    return scored


def _earlier_rows(path: Path, key: str) -> dict[str, torch.Tensor]:
    if not path.is_file():
        return {}
    with safe_open(path, framework="pt") as stored:
        if stored.metadata()["key"] != key:
            return {}
        return {column: stored.get_tensor(column) for column in stored.keys()}  # noqa: SIM118


def _score_batch(
    v: MaskedClassifier,
    attributions: torch.Tensor,
    batch: dict[str, torch.Tensor],
    args: BenchmarkArguments,
    asked_rank: torch.Tensor,
    asked_relative: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """The rows of a batch; rank and relative scores of the images asked for, by their ids."""
    pixel_values, targets, ids = batch["pixel_values"], batch["labels"], batch["ids"]
    undefined = torch.full_like(attributions[:, 0], torch.nan)
    rows = {"attributions": attributions}
    relative = functools.partial(relative_scores, n_masks=args.n_masks, budget=args.budget)
    for columns, score, wanted in ((RANK, rank_scores, asked_rank), (RELATIVE, relative, asked_relative)):
        if not len(wanted):
            continue
        for column in columns:
            rows[column] = torch.full_like(attributions if "curve" in column else undefined, torch.nan)
        asked = torch.isin(ids, wanted)
        if asked.any():
            of_asked = pixel_values[asked], attributions[asked], targets[asked]
            scores = score(v, *of_asked, seed=args.seed, ids=ids[asked])
            for column in columns:
                rows[column][asked] = getattr(scores, column)
    if "masks" in batch:
        masks = batch["masks"]
        maps = upsample(attributions, v.patch_grid(pixel_values), (masks.shape[-2], masks.shape[-1]))
        rows["rra"] = relevance_rank_accuracy(maps, masks)
        rows["rma"] = relevance_mass_accuracy(maps, masks)
    return rows


_ATEN = torch.ops.aten
#: torch counts every attention but the one that CPUs compute.
_FLOP_COUNTS = {
    **flop_registry,
    _ATEN._scaled_dot_product_flash_attention_for_cpu: flop_registry[_ATEN._scaled_dot_product_flash_attention],
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        _ATEN._scaled_dot_product_flash_attention_backward
    ],
}


class _Operations(TorchDispatchMode):
    """Counts floating-point operations of matrix products and convolutions, forward and backward."""

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        count: Callable | None = _FLOP_COUNTS.get(func._overloadpacket)
        if count is not None:
            self.total += count(*args, **(kwargs or {}), out_val=result)
        return result


def count_forwards(
    v: MaskedClassifier, method: attribution_methods.Method, pixel_values: torch.Tensor, targets: torch.Tensor
) -> float:
    """What explaining these images costs, in forwards of the classifier on them whole, by operations counted."""
    with _Operations() as of_method:
        method(pixel_values, targets)
    with torch.no_grad(), _Operations() as of_forward:
        v.classifier(pixel_values)
    return of_method.total / of_forward.total


@torch.no_grad()
def predictions(
    accelerator: Accelerator, v: MaskedClassifier, explainer, images: ProcessedImages, batch_size: int, name: str
) -> list[int]:
    """What the classifier, or an explainer by itself (eq. 6), predicts for all images."""
    loader = accelerator.prepare(DataLoader(images, batch_size=batch_size))
    predicted = []
    for batch in tqdm(loader, desc=f"Classifying: {name}", disable=not accelerator.is_main_process):
        logits = (explainer or v.classifier)(batch["pixel_values"]).logits
        predicted.append(accelerator.gather_for_metrics(predicted_targets(logits)))
    return torch.cat(predicted).tolist()


def examples(targets: list[int], number: int) -> list[int]:
    """Positions of some images: the first of every class, then the second, and so on."""
    seen: dict[int, int] = {}
    turns = []
    for position, target in enumerate(targets):
        seen[target] = seen.get(target, -1) + 1
        turns.append((seen[target], target, position))
    return [position for *_, position in sorted(turns)[:number]]


def _write_examples(folder: Path, images: ProcessedImages, indices: list[int]) -> None:
    """Keeps images as the model sees them, for the report's grid of maps."""
    pixel_values = torch.stack([item["pixel_values"] for item in images.__getitems__(indices)])
    pictures = to_pictures(pixel_values, images.processor)
    _save_tensors(folder / "examples.safetensors", {"pictures": pictures})


@torch.no_grad()
def _write_misclassified(
    folder: Path, images: ProcessedImages, names: list[str], explainer, predicted: list[int]
) -> dict[str, list]:
    """Keeps images that the explainer gets wrong, with its maps of the predicted and of the true class; names them."""
    assert images.labels is not None  # the benchmark's images have labels
    wrong = [index for index, label in enumerate(images.labels) if predicted[index] != label][:NUM_MISCLASSIFIED]
    labels = {"predicted": [predicted[index] for index in wrong], "true": [images.labels[index] for index in wrong]}
    if wrong:
        pixel_values = torch.stack([item["pixel_values"] for item in images.__getitems__(wrong)])
        attributions = explainer(pixel_values.to(explainer.device)).attributions.cpu()
        maps = {name: target_attributions(attributions, torch.tensor(classes)) for name, classes in labels.items()}
        tensors = {"pictures": to_pictures(pixel_values, images.processor), **maps}
        _save_tensors(folder / "misclassified.safetensors", tensors)
    return {"ids": [names[index] for index in wrong], **labels}


def _for_json(scored: dict[str, torch.Tensor], made_with: dict[str, Any]) -> dict[str, Any]:
    """A method's entry in results.json."""
    columns = [score for score in (*SCORES, "r_srg_stderr") if score in scored]
    return {
        **{score: [None if x != x else round(x, 6) for x in scored[score].tolist()] for score in columns},
        "curves": {
            name: [round(x, 6) for x in scored[f"{name}_curve"].double().nanmean(dim=0).tolist()]
            for name in CURVES
            if f"{name}_curve" in scored
        },
        "forwards": scored["forwards"][0].item(),
        "seconds": scored["seconds"].mean().item(),
        "made_with": made_with,
    }


# Written beside and renamed: a run stopped on the way leaves the earlier file whole.


def write_json(path: Path, results: dict[str, Any]) -> None:
    """Writes a file of results."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(results) + "\n")
    partial.rename(path)


def _save_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    partial = path.with_suffix(".partial")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, metadata)
    partial.rename(path)
