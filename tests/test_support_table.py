"""Which family of models supports what: docs/support.md is written by these tests, which fail where both differ.

`python -m pytest tests/test_support_table.py --write-table` writes the table anew.
"""

import re
from pathlib import Path

import pytest
import torch
from documented import check_written
from method_options import CHEAP
from transformers import Siglip2Config, Siglip2ForImageClassification

from salvage_hf import MaskedClassifier, attribution_methods
from salvage_hf.masking import STRATEGIES
from salvage_hf.modeling import BACKBONES, SalvageModel
from salvage_hf.objectives import OBJECTIVES

PAGE = Path(__file__).resolve().parents[1] / "docs" / "support.md"
BEGIN, END = "<!-- written by tests/test_support_table.py -->\n", "<!-- until here -->\n"
#: Families of tests/shared_fixtures.py; by pixels, each is explained on 4 x 4 patches of 4 pixels.
FAMILIES = [
    "dinov2",
    "dinov2_with_registers",
    "vit",
    "deit",
    "beit",
    "swin",
    "siglip",
    "resnet",
    "convnext",
    "efficientnet",
    "mobilenet_v2",
    "mobilevit",
]
#: The table's rows, from v(S) to every method of the registry.
ROWS = [
    *(f"v(S), `{masking}`" for masking in STRATEGIES),
    "images of another size",
    "an explainer on the backbone of the classifier",
    "an explainer on a backbone of DINOv2",
    *attribution_methods.REGISTRY,
]
TARGETS = torch.tensor([0, 2])


@torch.no_grad()
def explainer_of(classifier, backbone, objective):
    """An explainer as a run of training begins with, whose maps would be all zero, with noise on its weights.

    Its backbone is the classifier's where that can be, else another one.
    """
    paired, generator = OBJECTIVES[objective].paired_values, torch.Generator().manual_seed(0)
    source = classifier if classifier.config.model_type in BACKBONES else backbone
    explainer = SalvageModel.from_backbone(
        source, classifier, patch_size=4, objective=objective, paired_values=paired
    ).eval()
    for parameter in explainer.parameters():
        parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return explainer


def answer(row, classifier, backbone, images):
    """What a row of the table gives for two images [2, 16], or for one of another size; raises where it is refused."""
    pixel_values, masking = images(2), re.fullmatch(r"v\(S\), `(\w+)`", row)
    if masking:
        v = MaskedClassifier(classifier, masking[1], patch_size=4, image_size=16)
        subsets = torch.rand(2, 16, 16, generator=torch.Generator().manual_seed(0)) < 0.5
        return v.probabilities(pixel_values, subsets)[..., 0]
    v = MaskedClassifier(classifier, patch_size=4, image_size=16)
    if row == "images of another size":
        return v.probabilities(images(2, 24), torch.rand(2, 16, 36) < 0.5)[..., 0]
    if row == "an explainer on the backbone of the classifier":
        return SalvageModel.from_classifier(classifier).patch_features(pixel_values)
    if row == "an explainer on a backbone of DINOv2":
        return SalvageModel.from_backbone(backbone, classifier, patch_size=4).patch_features(pixel_values)
    options = dict(CHEAP.get(row, {}))
    if objective := attribution_methods.REGISTRY[row].objective:
        options["explainer"] = explainer_of(classifier, backbone, objective)
    return attribution_methods.load(row, classifier=v, **options)(pixel_values, TARGETS)


def reason_against(row, classifier, backbone, images):
    """Why a row of the table does not work, None where it does; the family's name is left out of the sentence."""
    try:
        values = answer(row, classifier, backbone, images)
    except ValueError as error:
        kind = classifier.config.model_type
        sentence = re.sub(rf"\b(an?|this) {kind} model", r"a *family* model", str(error))
        return sentence.replace(type(classifier).__name__, "*Family*ForImageClassification").replace(
            f"model type {kind!r}", "model type *family*"
        )
    assert values.shape[:1] == (2,)
    assert values[0].numel() >= 16
    assert values.isfinite().all()
    assert values.std() > 0
    return None


@pytest.fixture
def page(tiny_classifier, images):
    """The part of the page that is made here."""
    reasons: list[str] = []
    lines = [f"| | {' | '.join(FAMILIES)} | timm |", "|---" * (len(FAMILIES) + 2) + "|"]
    classifiers = [tiny_classifier(family) for family in FAMILIES]
    for row in ROWS:
        cells = []
        for classifier in classifiers:
            if (reason := reason_against(row, classifier, classifiers[0], images)) is None:
                cells.append("yes")
                continue
            if reason not in reasons:
                reasons.append(reason)
            cells.append(f"({reasons.index(reason) + 1})")
        name = f"`{row}`" if row in attribution_methods.REGISTRY else row
        lines.append(f"| {name} | {' | '.join(cells)} | not tried |")
    lines += ["", "The reasons, in the words of the library:", ""]
    lines += [f"{number}. {reason}" for number, reason in enumerate(reasons, start=1)]
    lines += ["", "Refused altogether:", ""]
    lines += [f"- {reason}" for reason in refused_altogether(tiny_classifier)]
    return "\n".join(lines) + "\n"


def refused_altogether(tiny_classifier):
    """The sentences for classifiers that no row of the table takes."""
    naflex = Siglip2Config(
        vision_config={"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1},
        text_config={"hidden_size": 8, "vocab_size": 8, "bos_token_id": 1, "eos_token_id": 2},
    )
    several = [tiny_classifier(problem_type=kind) for kind in ("multi_label_classification", "regression")]
    for classifier in (Siglip2ForImageClassification(naflex), *several):
        with pytest.raises(ValueError, match=r"siglip2|problem_type") as refusal:
            MaskedClassifier(classifier, patch_size=16)
        yield str(refusal.value)


def test_the_table_is_that_of_the_page(page, request):
    write = request.config.getoption("--write-table")
    check_written(PAGE, page, BEGIN, END, write, "tests/test_support_table.py")


def test_timm_models_are_explained(images):
    """Not in the table, because the libraries that are tested with leave timm and torchvision out."""
    pytest.importorskip("torchvision")
    pytest.importorskip("timm")
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

    config = TimmWrapperConfig(architecture="resnet10t", num_labels=3, do_pooling=True)
    classifier = TimmWrapperForImageClassification(config).eval()
    for name in ("rise", "saliency", "gradcam", "gradcam_plus_plus", "eigencam", "ablationcam"):
        v = MaskedClassifier(classifier, patch_size=16, image_size=64)
        maps = attribution_methods.load(name, classifier=v, **CHEAP.get(name, {}))(images(2, 64), TARGETS)
        assert maps.shape == (2, 16)
        assert maps.std() > 0
    assert "how the tokens" in reason_against("last_attention", classifier, None, images)
