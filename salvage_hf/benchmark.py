"""Attribution methods side by side on the same images: scores per image, kept in one results.json."""

import json
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm
from transformers import AutoImageProcessor, AutoModel

from . import attribution_methods
from .data import ProcessedImages, image_names, load_images
from .faithfulness import mean_and_stderr, rank_scores, relative_scores
from .masking import MaskedClassifier, digest, fingerprint, predicted_targets
from .training import arg, check_writable

logger = logging.getLogger(__name__)

#: Scores of the tables, with their titles; higher is better where True.
SCORES = {"srg": True, "lif": True, "mif": False, "r_srg": True, "r_lif": True, "r_mif": False}


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
    image_column_name: str = arg("image", "Column of the images.")
    label_column_name: str = arg("label", "Column of the labels.")
    on_bad_image: str = arg("refuse", "What to do with unreadable images: refuse or skip.")
    max_eval_samples: int | None = arg(None, "Evaluate on this many random images only.")
    masking: str = arg("drop", "How patches are hidden from the classifier.")
    n_masks: int = arg(128, "Draws per size and direction of the relative scores.")
    rise_masks: int = arg(2000, "Masks an image of the method rise.")
    budget: int | None = arg(None, "Forwards an image for the relative scores, in place of n_masks.")
    per_device_eval_batch_size: int = arg(32, "Images a batch and process.")
    seed: int = arg(0, "Seed of everything random.")
    output_dir: str = arg("outputs/benchmark", "Where results.json and table.md are written.")

    def __post_init__(self):
        unknown = [name for name in self.methods if name not in attribution_methods.REGISTRY]
        if unknown:
            raise ValueError(
                f"no attribution method {unknown[0]!r}; there are {', '.join(attribution_methods.REGISTRY)}"
            )
        if "salvage" in self.methods and not self.explainer:
            raise ValueError("the method salvage needs explainer=, a Salvage model")
        if "vit_shapley" in self.methods and not self.vit_shapley:
            raise ValueError("the method vit_shapley needs vit_shapley=, a model trained by its objective")


def run_benchmark(args: BenchmarkArguments) -> dict[str, Any]:
    """Scores every method on every image; a run that was stopped continues after the last finished method.

    Returns:
        What results.json holds: "ids" and "targets" of the images, and for each method its scores per image.

    Raises:
        ValueError: where `output_dir` holds results of other images, settings or weights of the classifier.
    """
    check_writable(args.output_dir)
    accelerator = Accelerator()
    with accelerator.main_process_first():
        v = MaskedClassifier.from_pretrained(args.model_name_or_path, masking=args.masking).to(accelerator.device)
        processor = AutoImageProcessor.from_pretrained(args.model_name_or_path)
        dataset = load_images(
            args.dataset_name, args.validation_dir, args.dataset_split, args.image_column_name, args.on_bad_image
        )
    images = ProcessedImages(dataset, processor, v.config, args.image_column_name, args.label_column_name)
    shuffled = torch.randperm(len(images), generator=torch.Generator().manual_seed(args.seed))
    chosen = sorted(shuffled[: args.max_eval_samples].tolist())
    loader = DataLoader(Subset(images, chosen), batch_size=args.per_device_eval_batch_size)
    loader = accelerator.prepare(loader)

    paths = {"salvage": args.explainer, "vit_shapley": args.vit_shapley}
    explainers = {
        name: AutoModel.from_pretrained(path, dtype=torch.float32).to(accelerator.device).eval()
        for name, path in paths.items()
        if name in args.methods
    }
    weights = {name: fingerprint(explainer) for name, explainer in explainers.items()}

    names = image_names(dataset, args.image_column_name)
    measured = {
        "settings": {
            "classifier": fingerprint(v.classifier),
            "processor": digest(processor.to_json_string()),
            "masking": args.masking,
            "precision": accelerator.mixed_precision,
            "relative": {"budget": args.budget} if args.budget else {"n_masks": args.n_masks},
            "seed": args.seed,
        },
        "ids": [names[index] for index in chosen],
        "targets": [images.labels[index] for index in chosen] if images.labels else [],
    }
    path = Path(args.output_dir) / "results.json"
    results: dict[str, Any] = earlier_results(path, measured) or {**measured, "methods": {}}
    explainer = explainers.get("salvage")
    if explainer is not None and results.get("classification", {}).get("weights") != weights["salvage"]:
        everything = accelerator.prepare(DataLoader(images, batch_size=args.per_device_eval_batch_size))
        results["classification"] = {
            **classification(accelerator, v, explainer, everything),
            "weights": weights["salvage"],
        }
    options_of: dict[str, dict[str, Any]] = {name: {"explainer": model} for name, model in explainers.items()}
    options_of["rise"] = {"num_masks": args.rise_masks}
    for name in args.methods:
        options = options_of.get(name, {})
        made_with = {"explainer": weights[name]} if name in weights else options
        if name in results["methods"] and results["methods"][name]["made_with"] == made_with:
            logger.info("%s is done already", name)
            continue
        method = attribution_methods.load(name, classifier=v, seed=args.seed, **options)
        scores = score_method(accelerator, v, method, loader, args, name)
        results["methods"][name] = {**scores, "made_with": made_with}
        if accelerator.is_main_process:
            # Written beside and renamed: a run stopped here leaves the earlier results whole.
            path.with_suffix(".partial").write_text(json.dumps(results) + "\n")
            path.with_suffix(".partial").rename(path)
            (path.parent / "table.md").write_text(markdown_table(results))
    return results


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
    loader: DataLoader,
    args: BenchmarkArguments,
    name: str,
) -> dict[str, Any]:
    """Scores of one method: lists over images (curves: their mean), and the seconds that explaining took."""
    rows, curves, seconds = [], [], 0.0
    for batch in tqdm(loader, desc=name, disable=not accelerator.is_main_process):
        pixel_values, targets, ids = batch["pixel_values"], batch["labels"], batch["ids"]
        draws = {"n_masks": args.n_masks, "budget": args.budget, "seed": args.seed, "ids": ids}
        with accelerator.autocast():
            start = time.perf_counter()
            attributions = method(pixel_values, targets)
            if attributions.is_cuda:
                torch.cuda.synchronize()
            seconds += time.perf_counter() - start
            rank = rank_scores(v, pixel_values, attributions, targets, args.seed, ids)
            relative = relative_scores(v, pixel_values, attributions, targets, **draws)
        scores = [rank.srg, rank.lif, rank.mif, relative.r_srg, relative.r_lif, relative.r_mif, relative.r_srg_stderr]
        rows.append(accelerator.gather_for_metrics(torch.stack(scores, dim=1)))
        of_batch = [rank.lif_curve, rank.mif_curve, relative.r_lif_curve, relative.r_mif_curve]
        curves.append(accelerator.gather_for_metrics(torch.stack(of_batch, dim=1)))
    columns = torch.cat(rows).double().round(decimals=6).T.tolist()
    mean_curves = torch.cat(curves).double().mean(dim=0).round(decimals=6).tolist()
    return {
        **dict(zip((*SCORES, "r_srg_draw_stderr"), columns, strict=True)),
        "curves": dict(zip(("lif", "mif", "r_lif", "r_mif"), mean_curves, strict=True)),
        "seconds_explaining": seconds,
    }


@torch.no_grad()
def classification(accelerator: Accelerator, v: MaskedClassifier, explainer, loader: DataLoader) -> dict[str, float]:
    """ "Classifying by explaining": accuracy of the classifier and of the explainer, and how often they agree."""
    rows = []
    for batch in tqdm(loader, desc="Classifying", disable=not accelerator.is_main_process):
        rows_columns = v.patch_grid(batch["pixel_values"])
        everything = torch.ones(len(batch["ids"]), 1, rows_columns[0] * rows_columns[1], dtype=torch.bool)
        classified = predicted_targets(v.logits(batch["pixel_values"], everything)[:, 0])
        explained = predicted_targets(explainer(batch["pixel_values"]).logits)
        row = torch.stack([classified == batch["labels"], explained == batch["labels"], classified == explained], dim=1)
        rows.append(accelerator.gather_for_metrics(row))
    table = torch.cat(rows)
    means = table.double().mean(dim=0).tolist()
    return {"images": len(table), **dict(zip(("classifier", "explainer", "agreement"), means, strict=True))}


def markdown_table(results: dict[str, Any]) -> str:
    """Mean and standard error over images in percent, a row per method."""
    arrows = [f"{name.upper().replace('_', '-')} {'↑' if higher else '↓'}" for name, higher in SCORES.items()]
    lines = [f"| method | {' | '.join(arrows)} |", "|---" * (len(SCORES) + 1) + "|"]
    for name, scores in results["methods"].items():
        cells = []
        for score in SCORES:
            mean, stderr = mean_and_stderr(torch.tensor(scores[score]))
            cells.append(f"{100 * mean:.1f} ± {100 * stderr:.1f}")
        lines.append(f"| {attribution_methods.REGISTRY[name].title} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
