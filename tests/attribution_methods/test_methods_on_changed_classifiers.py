"""Methods on classifiers that were changed, wrapped or stored in half precision, and in inference mode."""

import copy

import pytest
import torch
from test_attribution_methods import METHODS, N, options_of
from torch import nn
from transformers import Dinov2ForImageClassification

from salvage_hf import MaskedClassifier, attribution_methods

TARGETS = torch.tensor([0, 2])
#: Methods whose maps depend on the head. The others read attention or features before it, or nothing of the classifier.
READ_HEAD = [
    name
    for name in METHODS
    if name
    not in ("last_attention", "attention_rollout", "attention_flow", "eigencam", "random", "salvage", "fastshap")
]
IN_FLOAT32 = [
    name for name, method in attribution_methods.REGISTRY.items() if method.needs in ("gradients", "activations")
]


def load(name, v, salvage_model):
    return attribution_methods.load(name, classifier=v, **options_of(name, salvage_model))


@pytest.mark.parametrize("name", READ_HEAD)
def test_a_head_exchanged_after_loading_is_the_one_explained(tiny_classifier, salvage_model, images, name):
    v = MaskedClassifier(tiny_classifier())
    method = load(name, v, salvage_model)
    before = method(images(2), TARGETS)
    v.classifier.classifier = copy.deepcopy(tiny_classifier(seed=5).classifier)
    after, fresh = method(images(2), TARGETS), load(name, v, salvage_model)(images(2), TARGETS)
    torch.testing.assert_close(after, fresh, rtol=0, atol=0)
    assert (before - after).abs().max() > 1e-3 * before.abs().max()


@pytest.mark.parametrize("name", ["last_attention", "eigencam", "salvage"])
def test_a_classifier_exchanged_after_loading_is_the_one_explained(tiny_classifier, salvage_model, images, name):
    v = MaskedClassifier(tiny_classifier())
    method = load(name, v, salvage_model)
    v.classifier = tiny_classifier(seed=5)
    torch.testing.assert_close(method(images(2), TARGETS), load(name, v, salvage_model)(images(2), TARGETS))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", METHODS)
def test_half_precision_classifiers_are_explained(tiny_classifier, salvage_model, images, name, dtype):
    """Relevance, gradients and activations are computed in float32: only the weights are rounded."""
    if name in ("kernelshap", "vit_cx") and dtype == torch.bfloat16:
        pytest.skip("regression and clustering of answers in bfloat16 follow its rounding")
    half = MaskedClassifier(tiny_classifier().to(dtype))
    maps = load(name, half, salvage_model)(images(2), TARGETS)
    assert maps.dtype == torch.float32
    assert half.classifier.dtype == dtype  # left as it was
    rounded = MaskedClassifier(tiny_classifier().to(dtype).float())
    expected = load(name, rounded, salvage_model)(images(2), TARGETS)
    if name in IN_FLOAT32:
        torch.testing.assert_close(maps, expected, rtol=0, atol=0)
    elif name not in ("random", "kernelshap", "svarm", "rise", "vit_cx", "salvage_refined"):  # keyed by the pixels
        torch.testing.assert_close(maps, expected, rtol=0, atol=0.1 * float(expected.abs().max()))


@pytest.mark.parametrize("name", METHODS)
def test_methods_work_in_inference_mode(tiny_classifier, salvage_model, images, name):
    method = load(name, MaskedClassifier(tiny_classifier()), salvage_model)
    expected = method(images(2), TARGETS)
    with torch.inference_mode():
        maps = method(images(2), TARGETS.clone())
    torch.testing.assert_close(maps, expected, rtol=0, atol=0)
    assert not maps.requires_grad
    assert not maps.is_inference()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    "targets", [0, None, [0.5, 1.0], torch.tensor([0.0, 1.0]), [0], [[0, 1]], "01", [True, False], [0, 3], [-1, 0]]
)
def test_wrong_targets_are_refused(tiny_classifier, salvage_model, images, name, targets):
    method = load(name, MaskedClassifier(tiny_classifier()), salvage_model)
    with pytest.raises(ValueError, match=r"^targets "):
        method(images(2), targets)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    "wrong",
    [
        None,
        "picture",
        torch.randn(3, 16, 16),
        torch.randn(2, 1, 16, 16),
        torch.zeros(2, 3, 16, 16, dtype=torch.uint8),
        torch.randn(2, 3, 15, 16),
        torch.randn(0, 3, 16, 16),
    ],
    ids=lambda wrong: str(getattr(wrong, "shape", wrong)),
)
def test_wrong_images_are_refused(tiny_classifier, salvage_model, name, wrong):
    method = load(name, MaskedClassifier(tiny_classifier()), salvage_model)
    with pytest.raises(ValueError, match=r"^(pixel_values must be|an image of 15 x 16 pixels)"):
        method(wrong, TARGETS)


@pytest.mark.parametrize("name", METHODS)
def test_arrays_and_lists_are_taken(tiny_classifier, salvage_model, images, name):
    method = load(name, MaskedClassifier(tiny_classifier()), salvage_model)
    expected = method(images(2), TARGETS)
    torch.testing.assert_close(method(images(2).numpy(), [0, 2]), expected, rtol=0, atol=0)


# LRP walks through the layers by itself, so it must compute what the model computes


def lora(model):
    peft = pytest.importorskip("peft")
    model.add_adapter(peft.LoraConfig(target_modules="all-linear", init_lora_weights=False))
    return model.eval()


def hooked(model):
    model.base_model.encoder.layer[0].register_forward_hook(lambda module, inputs, output: 1.5 * output)
    return model


def quantised(model):
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


class OtherLinear(nn.Linear):
    def forward(self, x):
        return super().forward(x) + 1


def other_layer(model):
    layer = model.base_model.encoder.layer[1].mlp.fc1
    other = OtherLinear(layer.in_features, layer.out_features)
    other.load_state_dict(layer.state_dict())
    model.base_model.encoder.layer[1].mlp.fc1 = other
    return model


class Scaled(Dinov2ForImageClassification):
    """A subclass that computes otherwise with the same layers."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = 3 * output.logits
        return output


def subclassed(model):
    other = Scaled(model.config).eval()
    other.load_state_dict(model.state_dict())
    return other


@pytest.mark.filterwarnings("ignore:.*(quantiz|torch.ao).*")
@pytest.mark.parametrize("name", ["lrp", "conservative_lrp"])
@pytest.mark.parametrize("change", [lora, hooked, quantised, other_layer, subclassed])
def test_lrp_refuses_what_it_would_leave_out(tiny_classifier, name, change):
    v = MaskedClassifier(change(tiny_classifier()))
    with pytest.raises(ValueError, match=r"^LRP (needs plain Linear layers|cannot explain this)"):
        attribution_methods.load(name, classifier=v)


@pytest.mark.parametrize("name", ["lrp", "conservative_lrp"])
def test_merged_adapters_are_explained(tiny_classifier, images, name):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules="all-linear", init_lora_weights=False)
    wrapped = peft.get_peft_model(tiny_classifier(), config).eval()
    with torch.no_grad():
        own = wrapped(images(2)).logits
    merged = wrapped.merge_and_unload()
    v = MaskedClassifier(merged)
    torch.testing.assert_close(v.logits(images(2), torch.ones(2, 1, N, dtype=torch.bool))[:, 0], own)
    assert attribution_methods.load(name, classifier=v)(images(2), TARGETS).shape == (2, N)


# Explainers know the classifier that they were trained for


@pytest.mark.parametrize("wrong", [3, None, nn.Linear(2, 2)])
def test_an_explainer_of_another_kind_is_refused(tiny_classifier, wrong):
    with pytest.raises(ValueError, match=r"^explainer must be a SalvageModel"):
        attribution_methods.load("salvage", MaskedClassifier(tiny_classifier()), explainer=wrong)


def test_a_classifier_given_as_explainer_is_refused(tiny_classifier, save_processor, tmp_path):
    classifier = tiny_classifier()
    with pytest.raises(ValueError, match="got Dinov2ForImageClassification"):
        attribution_methods.load("salvage", MaskedClassifier(classifier), explainer=classifier)
    classifier.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="explainer must be a SalvageModel"):
        attribution_methods.load("salvage", MaskedClassifier(classifier), explainer=tmp_path)
