"""Every public function, class and metric answers wrong input by one sentence that names the argument."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from PIL import Image
from torch import nn
from transformers import BitImageProcessor, Dinov2Config, Dinov2ForImageClassification, Dinov2Model

import salvage_hf
from salvage_hf import (
    Explainer,
    MaskedClassifier,
    SalvageConfig,
    SalvageModel,
    attribution_methods,
    faithfulness,
    localization,
    refinement,
)
from salvage_hf import subsets as sampling
from salvage_hf.evaluate_modules.registration import load_metric, metric_scripts
from salvage_hf.keyed_random import KeyedGenerator
from salvage_hf.targets import check_targets

# Good values: two images of 16 x 16 pixels, 16 patches, three classes, annotated regions of 8 x 8 pixels.

MAPS = torch.linspace(-1, 1, 32).view(2, 16)
TARGETS = torch.tensor([1, 0])
IMAGES = torch.linspace(-1, 1, 2 * 3 * 16 * 16).view(2, 3, 16, 16)
PIXEL_MAPS = torch.linspace(-1, 1, 128).view(2, 8, 8)
MASKS = PIXEL_MAPS > 0.3
SUBSETS = torch.arange(64).view(2, 2, 16) % 3 == 0
CLASSIFIER = Dinov2ForImageClassification(
    Dinov2Config(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, patch_size=4, image_size=16, num_labels=3)
)
V = MaskedClassifier(CLASSIFIER)
EXPLAINER = SalvageModel.from_classifier(CLASSIFIER).requires_grad_(False)
PROCESSOR = BitImageProcessor(size={"shortest_edge": 20}, crop_size={"height": 16, "width": 16})


def value(pixel_values, subsets):
    """A quick v(S) [B, M, 3]."""
    brightness = nn.functional.avg_pool2d(pixel_values, 4).mean(1).flatten(1)  # [B, N]
    shown = subsets.float() @ brightness[..., None]
    return torch.cat([shown, -shown, 0 * shown], dim=-1).softmax(-1)


# Bad values of every kind of argument.

NOTHING = [object(), {}, set(), "cat", b"cat", lambda: 0, nn.Linear(2, 2), Image.new("RGB", (16, 16)), 1j, [None, None]]
NO_ARRAY = [*NOTHING, "", [], 3, 2.5, True, ["a", "b"], [[1.0], [1.0, 2.0]], [[]], [{}], np.array(["a", "b"])]
NO_NUMBER = [*NOTHING, "", "3", [1], (2, 3), float("nan"), torch.ones(3), np.ones(3), np.array([2, 3])]
NO_COUNT = [*NO_NUMBER, True, 1.5, -1, np.float64(2), torch.tensor(2.0)]
NO_POSITIVE = [*NO_NUMBER, None, True, 0, 0.0, -0.1, float("inf"), 10**400, torch.tensor(0.1)]
NO_SEED = [*NO_NUMBER, True, 1.5, 2**64, -(2**70), torch.tensor(0.5)]


def no_tensor(good: torch.Tensor) -> list[Any]:
    """What differs from a good tensor in type or in the number of dimensions."""
    others = [good[0], good[None], good[:0], good.to_sparse(), good.to(torch.complex64), good.to("meta")]
    others += [good.numpy().astype(object), np.ma.masked_array(good.numpy(), good.numpy() > 0), [good[0], None]]
    return [*NO_ARRAY, *others]


def no_reals(good: torch.Tensor) -> list[Any]:
    """What differs from good real numbers in type, in the number of dimensions or in being finite."""
    return [*no_tensor(good), good > 0, -good.abs().log() / 0, good / 0, good.long() + 2**60]


def other_batches(good: torch.Tensor) -> list[torch.Tensor]:
    """A good tensor with another number of images."""
    return [good[:1], torch.cat([good, good[:1]])]


NO_MAPS = [*no_reals(MAPS), *other_batches(MAPS), MAPS.view(2, 4, 4), IMAGES, [MAPS[0], MAPS[1][:3]]]
NO_WHOLE = [
    *no_tensor(TARGETS),
    *other_batches(TARGETS),
    TARGETS.double(),
    TARGETS > 0,
    [0.5, 1.0],
    [[0, 1]],
    [2**70, 0],
]
NO_TARGETS = [*NO_WHOLE, None, 1, [True, False], [0, -1], [0, 3], [float("nan"), 0.0]]
NO_IMAGES = [*no_tensor(IMAGES), None, IMAGES > 0, IMAGES.to(torch.uint8), IMAGES[:, 0], [Image.new("RGB", (9, 9))] * 2]
NO_MASKS = [*no_tensor(MASKS), None, MASKS.float(), MASKS.int(), MASKS[:, 0], *other_batches(MASKS)]
NO_GRID = [*NOTHING, 4, 2.5, (4,), (4, 4, 1), (4.0, 4.0), (0, 4), (-4, -4), (True, True), "44", (float("nan"), 4)]
NO_CHOICE = [*NOTHING, "", 3, True, ["bilinear"], np.array(["bilinear"] * 2)]
NO_SIZES = [*no_tensor(TARGETS), TARGETS.double(), [17, 1], [-1, 2], [0.5, 1.0], [1, 2, 3], [[1, 2]] * 3]
NO_SUBSETS = [*no_tensor(SUBSETS), None, SUBSETS.float(), SUBSETS[:1], SUBSETS[..., 1:], SUBSETS.numpy().astype(int)]

WRONG_ANSWERS: list[Callable[..., Any]] = [
    lambda x, s: None,
    lambda x, s: "cat",
    lambda x, s: value(x, s).numpy(),
    lambda x, s: value(x, s)[0],
    lambda x, s: value(x, s)[..., 0],
    lambda x, s: value(x, s)[:, :1].repeat(1, s.shape[1] + 1, 1),
    lambda x, s: value(x, s).log() / 0,
    lambda x, s: value(x, s) > 0.5,
    lambda x, s: value(x, s).long(),
    lambda x, s: value(x, s) + 0j,
]
BACKBONE = Dinov2Model(CLASSIFIER.config)
NO_MODEL = [None, 3, 2.5, True, [], {}, object(), IMAGES, nn.Linear(2, 2), BACKBONE, *WRONG_ANSWERS]


# The doors.


@dataclass
class Door:
    """A public function.

    Args:
        call: the function.
        good: arguments that it takes.
        bad: argument -> values that it must refuse.
        names: argument -> words one of which a message must hold, where that is not the argument's name.
    """

    call: Callable[..., Any]
    good: dict[str, Any]
    bad: dict[str, list[Any]]
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)


V_NAMES = ("v must", "v returned", "model", "classifier")
BAD_SCORED = {"v": NO_MODEL, "pixel_values": NO_IMAGES, "attributions": NO_MAPS, "targets": NO_TARGETS}
BAD_SCORED |= {"seed": [*NO_SEED, None], "ids": NO_WHOLE}
SCORED = {"v": value, "pixel_values": IMAGES, "attributions": MAPS, "targets": TARGETS}
BAD_DRAW = {"num_subsets": [*NO_COUNT, None], "generator": [*NOTHING, None, 3]}
REGION = {"maps": PIXEL_MAPS, "masks": MASKS}
MAPS_NAMES = {"maps": ("maps", "masks")}  # maps of another size may be right, and the masks wrong
BAD_REGION = {"maps": [*no_reals(PIXEL_MAPS), MAPS, IMAGES], "masks": NO_MASKS}


def keyed() -> KeyedGenerator:
    return KeyedGenerator("test", 0, keys=TARGETS)


DOORS = {
    "faithfulness.rank_scores": Door(faithfulness.rank_scores, SCORED, BAD_SCORED, {"v": V_NAMES}),
    "faithfulness.relative_scores": Door(
        faithfulness.relative_scores,
        {**SCORED, "n_masks": 2},
        {**BAD_SCORED, "n_masks": [*NO_COUNT, None, 0], "budget": [*NO_COUNT, 4], "target_stderr": [0.1]},
        {"v": V_NAMES},
    ),
    "faithfulness.relative_scores, with a budget": Door(
        faithfulness.relative_scores,
        {**SCORED, "budget": 9, "target_stderr": 0.5},
        {**BAD_SCORED, "target_stderr": [*NO_NUMBER, True, 0, 0.0, -0.1, float("inf"), torch.tensor(0.1)]},
        {"v": V_NAMES},
    ),
    "faithfulness.mean_and_stderr": Door(
        faithfulness.mean_and_stderr, {"scores": MAPS[0]}, {"scores": [*no_tensor(MAPS[0]), MAPS, MAPS[0] > 0, None]}
    ),
    "localization.relevance_rank_accuracy": Door(localization.relevance_rank_accuracy, REGION, BAD_REGION, MAPS_NAMES),
    "localization.relevance_mass_accuracy": Door(localization.relevance_mass_accuracy, REGION, BAD_REGION, MAPS_NAMES),
    "localization.upsample": Door(
        localization.upsample,
        {"attributions": MAPS, "grid_size": (4, 4), "size": (8, 8)},
        {
            "attributions": [*no_reals(MAPS), MAPS[:, 1:]],
            "grid_size": [*NO_GRID, None, (3, 5)],
            "size": [*NO_GRID, None],
            "mode": [*NO_CHOICE, None, "cubic"],
        },
    ),
    "subsets.uniform": Door(
        lambda **arguments: sampling.uniform(**{"generator": keyed(), **arguments}),
        {"batch_size": 2, "num_subsets": 2, "num_patches": 16},
        {**BAD_DRAW, "batch_size": [*NO_COUNT, 0], "num_patches": [*NO_COUNT, 0], "sizes": NO_SIZES},
    ),
    "subsets.weighted_orders": Door(
        lambda **arguments: sampling.weighted_orders(**{"generator": keyed(), **arguments}),
        {"weights": MAPS.abs(), "num_subsets": 2},
        {**BAD_DRAW, "weights": [*no_reals(MAPS), *other_batches(MAPS.abs()), MAPS], "exponent": NO_POSITIVE},
        {"weights": ("weights", "generator has 2 keys")},
    ),
    "subsets.attribution_guided": Door(
        lambda **arguments: sampling.attribution_guided(**{"generator": keyed(), **arguments}),
        {"scores": MAPS, "num_subsets": 2},
        {**BAD_DRAW, "scores": [*no_reals(MAPS), *other_batches(MAPS)], "sizes": NO_SIZES, "exponent": NO_POSITIVE},
        {"scores": ("scores", "generator has 2 keys")},
    ),
    "targets.check_targets": Door(
        check_targets,
        {"targets": TARGETS, "num_labels": 3},
        {"targets": [*no_tensor(TARGETS), TARGETS > 0, [0.5], [-1], [3], [float("nan")]]},
    ),
    "load_metric": Door(load_metric, {"name": "srg"}, {"name": [*NO_CHOICE, None, "accuracy", "../srg"]}),
    "MaskedClassifier": Door(
        MaskedClassifier,
        {"classifier": CLASSIFIER},
        {
            "classifier": [*NOTHING, None, "cat", value, V, BACKBONE],
            "masking": [*NO_CHOICE, "hide"],
            "patch_size": [*NO_COUNT, 0, (4, 4)],
            "image_size": [*[size for size in NO_GRID if size != 4], 0, -16, 1.5, True, "16"],
            "chunk_size": [*NO_COUNT, 0],
            "mixed_precision": [*NO_CHOICE, None, "int8"],
        },
    ),
    "MaskedClassifier.from_pretrained": Door(
        lambda name_or_path: MaskedClassifier.from_pretrained(name_or_path),
        {},
        {"name_or_path": [*NOTHING, None, 3, True, [], CLASSIFIER, "no/such/classifier", "/no/such/folder"]},
        {"name_or_path": ("name_or_path", "cat", "no/such")},
    ),
    "MaskedClassifier.logits": Door(
        V.logits, {"pixel_values": IMAGES, "subsets": SUBSETS}, {"pixel_values": NO_IMAGES, "subsets": NO_SUBSETS}
    ),
    "MaskedClassifier.probabilities": Door(
        V.probabilities,
        {"pixel_values": IMAGES, "subsets": SUBSETS},
        {"pixel_values": NO_IMAGES, "subsets": NO_SUBSETS},
    ),
    "Explainer": Door(
        functools.partial(Explainer, device="cpu"),
        {"name_or_model": CLASSIFIER, "processor": PROCESSOR},
        {
            "name_or_model": [*NOTHING, None, 3, True, [], value, BACKBONE, "no/such/classifier", "/no/such/folder"],
            "method": [*NO_CHOICE, "shap"],
            "budget": [*NO_COUNT, 8],
            "classifier": [*NOTHING, 3, V, CLASSIFIER],
            "device": [object(), {}, set(), "cat", 1j, [0], "cuda:99"],
            "patch_size": [*NO_COUNT, 0, 5],
            "seed": [*NO_SEED, None],
        },
        {"name_or_model": ("name_or_model", "cat", "no/such", "classifier"), "patch_size": ("patch_size", "patches")},
    ),
    "Explainer, of an image": Door(
        Explainer(CLASSIFIER, "random", processor=PROCESSOR),
        {"images": Image.new("RGB", (30, 20))},
        {
            "images": [object(), {}, set(), b"cat", "cat", lambda: 0, nn.Linear(2, 2), 1j, None, 3, True, IMAGES],
            "classes": [object(), {}, set(), "cat", b"cat", 1j, 2.5, True, 3, -1, [], [None], [0.5], "9"],
            "top": [*NO_COUNT, None, 0],
            "batch_size": [*NO_COUNT, None, 0],
            "pixel_range": [object(), {}, set(), "cat", 3, (1,), (2, 1), (0, float("nan")), ("a", "b"), (None, 1)],
        },
        {"images": ("images", "image 'cat'")},
    ),
    "attribution_methods.load": Door(
        attribution_methods.load,
        {"name": "random", "classifier": V},
        {"name": [*NO_CHOICE, None, "shap"], "classifier": [*NO_MODEL, CLASSIFIER, "cat"], "seed": [*NO_SEED, None]},
        {"name": ("name", "attribution method")},
    ),
    "attribution_methods.load, of an explainer": Door(
        functools.partial(attribution_methods.load, "salvage"),
        {"classifier": V, "explainer": SalvageModel.from_classifier(CLASSIFIER)},
        {"explainer": [*NOTHING, None, 3, V, CLASSIFIER, value, "no/such/explainer"]},
        {"explainer": ("explainer", "cat", "no/such")},
    ),
    "refinement.refine": Door(
        functools.partial(refinement.refine, V),
        {"attributions": MAPS, "pixel_values": IMAGES, "targets": TARGETS, "budget": 16},
        {
            "attributions": NO_MAPS,
            "pixel_values": NO_IMAGES,
            "targets": NO_TARGETS,
            "budget": [*NO_COUNT, None, 15],
            "seed": [*NO_SEED, None],
        },
    ),
    "SalvageConfig": Door(
        SalvageConfig,
        {},
        {
            "backbone_config": [*NOTHING, 3, True, "dinov2", [], {"model_type": "cat"}, {"model_type": "resnet"}],
            "patch_size": [*NO_COUNT, 0, 10**9],
            "channel_map": [*NOTHING, "", 3, True, [], [[1.0, 0.0]], [[1.0], [1.0], [1.0]], [["a", "b"]] * 3],
            "head_hidden_size": [*NO_COUNT, 10**9, 10],
            "head_num_layers": [*NO_COUNT, None, 10**9],
            "head_num_attention_heads": [*NO_COUNT, 10**9, 5],
            "head_mlp_ratio": [*NO_NUMBER, None, -1, 0, True],
            "paired_values": [*NO_NUMBER, None, 2],
            "logit_temperature": [*NO_NUMBER, None, 0, -1.0, True, float("inf")],
            "initializer_range": [*NO_NUMBER, -1.0, True, float("inf")],
            "objective": [choice for choice in [*NO_CHOICE, None] if not isinstance(choice, str)],
        },
    ),
    "SalvageModel.from_classifier": Door(
        SalvageModel.from_classifier,
        {"classifier": CLASSIFIER},
        {"classifier": [*NOTHING, None, 3, "cat", value, V, BACKBONE]},
    ),
    "SalvageModel.post_process_attributions": Door(
        EXPLAINER.post_process_attributions,
        {
            "outputs": EXPLAINER(IMAGES),
            "target_sizes": [(24, 30), (16, 16)],
            "image_processor": PROCESSOR,
            "classes": torch.tensor([[0, 2], [1, 1]]),
        },
        {
            "target_sizes": [*NOTHING, None, 3, "", [], [(16, 16)], [(0, 4), (4, 4)], [(4.0, 4), (4, 4)], [4, 4]],
            "classes": [*no_tensor(TARGETS), TARGETS, TARGETS[None], TARGETS[:, None] + 2, TARGETS[:, None] - 1],
        },
    ),
    "SalvageModel.from_backbone": Door(
        SalvageModel.from_backbone,
        {"backbone": BACKBONE, "classifier": CLASSIFIER},
        {"backbone": [*NOTHING, None, 3, "cat", value, V], "classifier": [*NOTHING, None, 3, "cat", value, V]},
    ),
}
for method in ("random", "saliency", "gradcam", "last_attention", "lrp", "rise"):
    DOORS[f"attribution_methods, {method}"] = Door(
        attribution_methods.load(method, V, **({"budget": 4} if method == "rise" else {})),
        {"pixel_values": IMAGES, "targets": TARGETS},
        {"pixel_values": NO_IMAGES, "targets": NO_TARGETS},
    )

BAD_COMPUTE = {
    "predictions": [*NO_MAPS, None],
    "references": NO_TARGETS,
    "pixel_values": [*NO_IMAGES, *other_batches(IMAGES)],
    "model": NO_MODEL,
    "masks": NO_MASKS,
    "ids": NO_WHOLE,
    "seed": [*NO_SEED, None],
    "batch_size": [*NO_COUNT, None, 0],
    "n_masks": [*NO_COUNT, None, 0],
    "budget": [*NO_COUNT, 4],
    "target_stderr": [0.1, float("nan"), True, "0.1"],
    "grid_size": [*NO_GRID, (3, 5)],
    "upsampling": [*NO_CHOICE, None, "cubic"],
}
for name in metric_scripts():
    metric = load_metric(name, keep_in_memory=True)
    taken = inspect.signature(metric._compute).parameters
    good = {"predictions": MAPS, "references": TARGETS, "pixel_values": IMAGES, "model": value, "masks": MASKS}
    bad = {argument: values for argument, values in BAD_COMPUTE.items() if argument in taken}
    if "masks" in taken:  # maps of pixels are good there, but none of other pixels than those of the mask
        bad["predictions"] = [*no_reals(MAPS), *other_batches(MAPS), IMAGES, [MAPS[0], PIXEL_MAPS[0]], None]
    DOORS[f"metric {name}"] = Door(
        metric.compute,
        {argument: values for argument, values in (good | {"n_masks": 2}).items() if argument in taken},
        {**bad, "unknown": [1]},
        {
            "model": V_NAMES,
            "references": ("references", "targets"),  # the class that is explained is a target everywhere else
            "predictions": ("predictions", "pixel_values", "masks", "references", "grid_size"),
        },
    )

ARGUMENTS = [(path, argument) for path, door in DOORS.items() for argument in door.bad]


def answer(door: Door, argument: str, given: Any) -> str:
    """How a door answers a value: "taken", "refused", or what is wrong with its refusal."""
    try:
        door.call(**{**door.good, argument: given})
    except (ValueError, TypeError) as error:
        message, words = str(error), door.names.get(argument, (argument,))
        if "\n" in message or len(message) > 400 or "tensor(" in message:
            return f"no sentence: {message[:400]!r}"
        return "refused" if any(word in message for word in words) else f"names none of {words}: {message!r}"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:400]!r}"
    return "taken"


@pytest.mark.parametrize("path", [path for path in DOORS if DOORS[path].good])
def test_good_arguments_are_taken(path):
    DOORS[path].call(**DOORS[path].good)


@pytest.mark.parametrize(("path", "argument"), ARGUMENTS)
def test_bad_arguments_are_refused_by_a_sentence(path, argument):
    door = DOORS[path]
    answers = [(repr(bad)[:80], answer(door, argument, bad)) for bad in door.bad[argument]]
    assert [(bad, answered) for bad, answered in answers if answered != "refused"] == []


SCALARS = st.none() | st.booleans() | st.integers(-3, 9) | st.floats() | st.complex_numbers() | st.text(max_size=5)
JUNK = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner))


# Texts may be names of files, or of models, for which the Hub would be asked. The metrics of a family share their code.
NAMES_OF_MODELS = {"v", "model", "explainer", "name_or_path", "name_or_model", "images"}
WITH_JUNK = [
    (path, argument)
    for path, argument in ARGUMENTS
    if argument not in NAMES_OF_MODELS
    and path not in {f"metric {name}" for name in ("lif", "mif", "r_lif", "r_mif", "rma")}
]


@settings(max_examples=settings.default.max_examples // 2, phases=[Phase.generate])
@given(junk=JUNK)
def test_any_junk_is_taken_or_refused_by_a_sentence(junk):
    """One test, because to make up junk takes longer than to refuse it."""
    answers = [(path, argument, answer(DOORS[path], argument, junk)) for path, argument in WITH_JUNK]
    assert [found for found in answers if found[-1] not in ("taken", "refused")] == []


def test_every_public_name_has_a_door():
    others = {
        "Explanation",  # made by an Explainer
        "SalvageForImageClassification",  # a model of transformers, made from a config or a folder
        "SalvageModel",  # likewise, but for `from_classifier`
        "SalvageOutput",
    }
    assert {path.partition(".")[0] for path in DOORS} >= set(salvage_hf.__all__) - others
