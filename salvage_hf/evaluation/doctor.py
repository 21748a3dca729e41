"""Is this explainer any good? What `salvage doctor` does: checks of a classifier and its explainer on a few images."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from tqdm.auto import tqdm
from transformers import AutoModel

from .. import attribution_methods
from ..arguments import PRIVATE, AtLeast, AtMost, ImageArguments, arg
from ..data.images import ProcessedImages
from ..faithfulness import mean_and_stderr, rank_scores
from ..files import locked, write_bytes, write_json
from ..keyed_random import KeyedGenerator
from ..masking import MaskedClassifier, PatchArguments, check_provenance, load_classifier_of
from ..pretrained import load_model, load_processor
from ..subsets import uniform
from ..targets import label_names, predicted_targets, target_attributions, target_names
from . import doctor_checks as checks
from . import doctor_picture, plots
from .doctor_checks import BAD, DOUBTFUL, NOT_CHECKED, Answers, Finding
from .doctor_randomisation import IMAGES as RANDOMISED_IMAGES
from .doctor_randomisation import check_randomisation
from .loading import LoadedImages, load_labelled_images
from .tables import Cell, Table

#: The shares of visible patches at which subsets are drawn, besides none and all, and how many of them per image.
SHARES = (0.125, 0.25, 0.5, 0.75)
DRAWS = 4

#: How many images, from the first on, are scored by SRG: for each of three maps this takes 2N - 1 forwards.
RANKED_IMAGES = 16

#: How many images pass through both image processors.
PROCESSED_IMAGES = 8

#: Images per batch; it changes no number.
_BATCH = 8


@dataclass
class DoctorArguments(PatchArguments, ImageArguments):
    """Arguments of `salvage doctor`."""

    explainer: str = arg("", "The explainer: a folder, or a name on the Hub.")
    classifier: str | None = arg(
        None, "The classifier that it explains: a folder, or a name on the Hub. The one that it states when not given."
    )
    max_eval_samples: Annotated[int, AtLeast(2)] = arg(64, "Use only this many of the images, chosen at random.")
    seed: Annotated[int, AtLeast(0), AtMost(2**32 - 1)] = arg(0, "The seed of everything random.")
    output_dir: Annotated[str, PRIVATE] = arg("outputs/doctor", "The folder for doctor.json and doctor.png.")

    def __post_init__(self):
        super().__post_init__()
        if not self.explainer:
            raise ValueError("explainer is needed: the Salvage model to examine")
        self.check_one_source()


def run_doctor(args: DoctorArguments) -> list[Finding]:
    """Examines an explainer, and writes doctor.json and doctor.png into `output_dir`.

    Returns:
        The findings, causes before what follows from them.

    Raises:
        ValueError: where models or images cannot be loaded or do not fit at all, answers are not finite, or another
            process writes to `output_dir`.
    """
    device, folder = torch.device("cuda" if torch.cuda.is_available() else "cpu"), Path(args.output_dir)
    explainer = _load_explainer(args.explainer).to(device)
    v = load_classifier_of(explainer.config, args.classifier, patch_size=args.patch_size).to(device)
    _check_fit(explainer, v)
    with locked(folder, "salvage doctor"):
        data = load_labelled_images(args, v, args.seed)
        if len(data.chosen) < 2:
            raise ValueError(
                "the data set has one image; needed are 2 or more, because verdicts depend on their spread"
            )
        names = target_names(label_names(v.config))
        findings = [*_check_classifier(explainer, v), _check_processor(args, data)]
        answers = ask(v, explainer, data, args.seed)
        srg = rank(v, explainer, data, args.seed)
        findings += [
            checks.check_labels(answers),
            checks.check_quarter(answers),
            checks.check_calibration(answers),
            checks.check_agreement(answers),
            *checks.check_divergences(answers),
            checks.check_bias(answers, names),
            *checks.check_maps(srg),
        ]
        few = data.images.batch(data.chosen[:RANDOMISED_IMAGES])["pixel_values"].to(device)
        randomisation, cascades = check_randomisation(v, explainer, few, predicted_targets(v.whole_logits(few)))
        findings += randomisation
        write_json(folder / "doctor.json", _report(findings, answers, srg, cascades, names))
        figure = doctor_picture.draw(findings, answers, srg, cascades, names)
        write_bytes(folder / "doctor.png", plots.file_content(figure))
    return findings


def exit_status(findings: Sequence[Finding]) -> int:
    """1 where something is bad, otherwise 0."""
    return int(any(found.verdict == BAD for found in findings))


def doctor_table(findings: Sequence[Finding]) -> str:
    """The findings as Markdown, and one line with the conclusion."""
    rows = []
    for found in findings:
        value = good = bad = "-"
        if found.value is not None and found.threshold_good is not None and found.threshold_bad is not None:
            error = f" ± {found.stderr:.3f}" if found.stderr else ""
            value = f"{found.value:.3f}{error} {found.unit}"
            upwards = found.threshold_good > found.threshold_bad
            good = f"{'≥' if upwards else '≤'} {found.threshold_good:g}"
            bad = f"{'<' if upwards else '>'} {found.threshold_bad:g}"
        rows.append([Cell(text) for text in (found.name, value, good, bad, found.verdict, found.advice)])
    table = Table(["check", "value", "good", "bad", "verdict", "what to do"], rows).markdown()
    return f"{table}\n{_conclusion(findings)}"


def _conclusion(findings: Sequence[Finding]) -> str:
    """One sentence about all findings. Causes stand first, so that the first bad one is where to begin."""
    for word in (BAD, DOUBTFUL):
        if found := [item for item in findings if item.verdict == word]:
            number = f"{len(found)} of {len(findings)} checks"
            return f"{word.capitalize()}: {number}. Begin with the first, {found[0].name!r}: {found[0].advice}"
    unchecked = sum(found.verdict == NOT_CHECKED for found in findings)
    return f"Good: all {len(findings) - unchecked} checks" + (f"; {unchecked} could not be made." if unchecked else ".")


# Models


def _load_explainer(name: str) -> Any:
    model = load_model(AutoModel, name, dtype=torch.float32)
    if getattr(model.config, "model_type", None) != "salvage" or model.config.objective != "salvage":
        kind = getattr(model.config, "objective", model.config.model_type)
        raise ValueError(
            f"explainer {name!r} is of the kind {kind!r}; needed is a Salvage model trained by the objective "
            "'salvage': others do not predict what the classifier says about partial images"
        )
    return model


def _check_fit(explainer: Any, v: MaskedClassifier) -> None:
    """Raises ValueError where the two cannot be asked about the same patches and classes."""
    config = explainer.config
    for what, theirs, ours in (
        ("labels", config.num_labels, v.num_labels),
        ("pixels as the side of a patch", config.patch_size, v.patch_size),
    ):
        if theirs != ours:
            raise ValueError(
                f"the explainer has {theirs} {what}, the classifier {ours}: it cannot have been trained for this one"
            )


def _check_classifier(explainer: Any, v: MaskedClassifier) -> list[Finding]:
    """Whether the explainer states this classifier, and has its label names in its order."""
    name, stated = "explainer: trained for this classifier", getattr(explainer.config, "explained_classifier", None)
    if stated:
        try:
            check_provenance(stated, v)
            problem = ""
        except ValueError as error:
            problem = f"Give the classifier that it was trained for: {error}."
        found = checks.finding(name, float(bool(problem)), 0.0, "differences", checks.NO_DIFFERENCE, problem)
    else:
        found = checks.not_checked(name, "The explainer does not state its classifier; the checks below compare both.")
    theirs, ours = (label_names(config) for config in (explainer.config, v.config))
    differ = sum(a != b for a, b in zip(theirs, ours, strict=True))
    how = "has the classifier's label names in another order"
    if sorted(theirs) != sorted(ours):
        how = f"calls {next(a for a in theirs if a not in ours)!r} what the classifier has no name for"
    advice = f"The explainer {how}: number its classes as the classifier does, or give its own classifier."
    names = checks.finding("explainer: label names", float(differ), 0.0, "differences", checks.NO_DIFFERENCE, advice)
    return [found, names]


def _check_processor(args: DoctorArguments, data: LoadedImages) -> Finding:
    """How far the pixel values by the explainer's image processor are from those by the classifier's."""
    name, few = "explainer: image processor", data.chosen[:PROCESSED_IMAGES]
    try:
        processor = load_processor(args.explainer)
    except ValueError:
        return checks.not_checked(name, "The explainer has no image processor: save the classifier's with it.")
    images = data.images
    own = ProcessedImages(images.images, processor, None, images.image_column, pixel_range=images.pixel_range)
    ours = images.batch(few)["pixel_values"]
    advice = "Save the classifier's image processor with the explainer, because its users process images by its own."
    try:
        theirs = own.batch(few)["pixel_values"]
        if theirs.shape != ours.shape:
            raise ValueError(f"it gives {list(theirs.shape[1:])} pixels, the classifier's {list(ours.shape[1:])}")
    except ValueError as error:
        return Finding(name, None, None, "", None, None, BAD, f"{advice} ({error})")
    differences = (theirs - ours).abs().double().mean(dim=(1, 2, 3))
    return checks.finding(name, *mean_and_stderr(differences), "standard deviations", checks.PROCESSOR, advice)


# What they answer


@torch.no_grad()
def ask(v: MaskedClassifier, explainer: Any, data: LoadedImages, seed: int = 0) -> Answers:
    """Both models about the same subsets of the chosen images: none, all, and `DRAWS` of each of the `SHARES`.

    Raises:
        ValueError: where an answer is NaN or infinite.
    """
    classifier, explained, labels = [], [], []
    shares = torch.tensor([0.0, *(share for share in SHARES for _ in range(DRAWS)), 1.0], dtype=torch.float64)
    for start in tqdm(range(0, len(data.chosen), _BATCH), desc="Subsets"):
        batch = data.images.batch(data.chosen[start : start + _BATCH])
        pixel_values = batch["pixel_values"].to(v.device)
        num_patches = math.prod(v.patch_grid(pixel_values))
        generator = KeyedGenerator("subsets of the doctor", seed, keys=batch["ids"])
        sizes = (shares * num_patches).round().long()
        subsets = uniform(len(batch["ids"]), len(sizes), num_patches, generator=generator, sizes=sizes).to(v.device)
        classifier.append(v.logits(pixel_values, subsets).float().cpu())
        explained.append(explainer.subset_logits(explainer(pixel_values), subsets).float().cpu())
        labels.append(batch["labels"])
    answers = Answers(shares, torch.cat(classifier), torch.cat(explained), torch.cat(labels))
    for model, logits in (("classifier", answers.classifier), ("explainer", answers.explainer)):
        if not logits.isfinite().all():
            raise ValueError(f"the {model} answers NaN or infinity to subsets of these images; give another one")
    return answers


@torch.no_grad()
def rank(v: MaskedClassifier, explainer: Any, data: LoadedImages, seed: int) -> dict[str, torch.Tensor]:
    """SRG of the maps of the class that the classifier predicts: method -> float [I], of `RANKED_IMAGES` images."""
    untrained = ("last_attention", "random") if v.has_tokens else ("random",)
    scores: dict[str, list[torch.Tensor]] = {name: [] for name in ("explainer", *untrained)}
    methods = {name: attribution_methods.load(name, v, seed) for name in untrained}
    chosen = data.chosen[:RANKED_IMAGES]
    for start in tqdm(range(0, len(chosen), _BATCH), desc="SRG"):
        batch = data.images.batch(chosen[start : start + _BATCH])
        pixel_values = batch["pixel_values"].to(v.device)
        targets = predicted_targets(v.whole_logits(pixel_values))
        for name, found in scores.items():
            if name == "explainer":
                maps = target_attributions(explainer(pixel_values).attributions, targets)
            else:
                maps = methods[name](pixel_values, targets)
            found.append(rank_scores(v, pixel_values, maps, targets, seed, batch["ids"]).srg.cpu())
    return {name: torch.cat(found).double() for name, found in scores.items()}


def _report(
    findings: Sequence[Finding],
    answers: Answers,
    srg: dict[str, torch.Tensor],
    cascades: dict[str, list[float]],
    names: Sequence[str],
) -> dict[str, Any]:
    """What doctor.json holds: the findings, and the curves and bars of the picture as (mean, standard error)."""
    confidence, hits = checks.confidence_and_hits(answers)
    by_share = {"divergence": checks.divergences(answers), "confidence": confidence, "accuracy": hits}
    bias = checks.class_bias(answers)
    return {
        "findings": [asdict(found) for found in findings],
        "conclusion": _conclusion(findings),
        "images": len(answers.labels),
        "by_share": {name: answers.by_share(values) for name, values in by_share.items()},
        "bias": {name: mean_and_stderr(bias[:, index]) for index, name in enumerate(names)},
        "srg": {name: mean_and_stderr(scores) for name, scores in srg.items()},
        "randomisation": cascades,
    }
