"""What users can rely on: the names of `salvage_hf`, their docstrings, what an import costs, what a loader hands on."""

import pytest
import torch
from fresh_processes import run_fresh
from packaging.version import Version
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification, BitImageProcessor

import salvage_hf
from salvage_hf import MaskedClassifier, SalvageConfig, SalvageForImageClassification, SalvageModel

PUBLIC = [
    "Explainer",
    "Explanation",
    "MaskedClassifier",
    "SalvageConfig",
    "SalvageForImageClassification",
    "SalvageModel",
    "SalvageOutput",
    "attribution_methods",
    "faithfulness",
    "load_metric",
    "localization",
    "refinement",
    "subsets",
]

# The public names of the modules among them.
IN_MODULES = [
    "attribution_methods.load",
    "attribution_methods.register",
    "faithfulness.mean_and_stderr",
    "faithfulness.rank_scores",
    "faithfulness.relative_scores",
    "localization.relevance_mass_accuracy",
    "localization.relevance_rank_accuracy",
    "localization.upsample",
    "subsets.attribution_guided",
    "subsets.uniform",
    "subsets.weighted_orders",
]


def resolve(path):
    found = salvage_hf
    for name in path.split("."):
        found = getattr(found, name)
    return found


def test_the_public_names():
    assert salvage_hf.__all__ == PUBLIC


@pytest.mark.parametrize("path", PUBLIC + IN_MODULES)
def test_every_public_name_has_a_docstring(path):
    thing = resolve(path)
    assert thing.__doc__
    assert not thing.__doc__.startswith(f"{path}(")  # a dataclass without a docstring gets such a one


def test_version():
    assert str(Version(salvage_hf.__version__)) == salvage_hf.__version__  # in the form that a wheel's name has


def test_an_import_is_light(tmp_path):
    code = """
import sys
import salvage_hf
print([name for name in ("evaluate", "datasets", "matplotlib", "gradio", "captum", "sklearn") if name in sys.modules])
"""
    assert run_fresh(code, tmp_path) == "[]\n"


def test_the_auto_classes_know_salvage(salvage_model):
    assert isinstance(AutoConfig.for_model("salvage"), SalvageConfig)
    config = salvage_model().config
    assert type(AutoModel.from_config(config)) is SalvageModel
    assert type(AutoModelForImageClassification.from_config(config)) is SalvageForImageClassification


def test_from_pretrained_hands_on_where_and_how_to_load(tiny_classifier, monkeypatch):
    calls = {}

    def load(cls, name, **options):
        calls[cls.__name__] = name, options
        return tiny_classifier(), {"missing_keys": set(), "mismatched_keys": set()}

    def load_processor(cls, name, **options):
        calls[cls.__name__] = name, options
        return BitImageProcessor(size={"height": 32, "width": 24}, do_center_crop=False)

    monkeypatch.setattr(AutoModelForImageClassification, "from_pretrained", classmethod(load))
    monkeypatch.setattr(AutoImageProcessor, "from_pretrained", classmethod(load_processor))
    source = {"revision": "v2", "token": "hf_secret", "trust_remote_code": True}
    how = {"attn_implementation": "eager", "dtype": torch.bfloat16}
    v = MaskedClassifier.from_pretrained("org/dinov2-pet", masking="zero", chunk_size=7, **source, **how)
    assert calls == {
        "AutoModelForImageClassification": ("org/dinov2-pet", {**source, **how, "output_loading_info": True}),
        "AutoImageProcessor": ("org/dinov2-pet", source),
    }
    assert (v.masking, v.chunk_size) == ("zero", 7)
    assert v.grid_size == (8, 6)
    assert not any(parameter.requires_grad for parameter in v.parameters())

    calls.clear()
    MaskedClassifier.from_pretrained("org/dinov2-pet")
    name, options = calls["AutoModelForImageClassification"]
    assert name == "org/dinov2-pet"
    assert options["dtype"] == torch.float32  # and not the checkpoint's
    assert options["trust_remote_code"] is False  # refused at once, not asked for
    MaskedClassifier.from_pretrained("org/dinov2-pet", token=False)
    assert calls["AutoModelForImageClassification"][1]["token"] is False  # the stored one is not used
    assert calls["AutoImageProcessor"][1] == {"token": False, "trust_remote_code": False}
