"""v(N) is the model's own answer, however the classifier was wrapped, moved, converted or changed."""

import copy
import io
import pickle

import pytest
import torch
from accelerate import Accelerator, cpu_offload, dispatch_model
from accelerate.state import AcceleratorState
from torch import nn
from transformers import AutoModelForImageClassification, Dinov2ForImageClassification

from salvage_hf.masking import MaskedClassifier, as_value_function

FAMILIES = ["dinov2", "dinov2_with_registers", "vit", "deit", "deit_teacher", "resnet", "swin"]


def prepared(model):
    """As accelerate prepares it in bfloat16: with a `forward` of its own."""
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        return Accelerator(cpu=True, mixed_precision="bf16").prepare(model)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def dispatched(model):
    """As a model that is spread over devices: every part has a hook that moves its inputs."""
    return dispatch_model(model, {name: "cpu" for name, _ in model.named_children()}, force_hooks=True)


def offloaded(model):
    return cpu_offload(model, execution_device=torch.device("cpu"))


def with_another_head(model):
    for name, part in model.named_children():
        if isinstance(part, nn.Linear):
            setattr(model, name, nn.Linear(part.in_features, part.out_features))
        elif isinstance(part, nn.Sequential):  # ResNet
            part[-1] = nn.Linear(part[-1].in_features, part[-1].out_features)
    return model


def with_a_hook(model):
    norm = next(part for part in model.modules() if isinstance(part, (nn.LayerNorm, nn.BatchNorm2d)))
    norm.register_forward_hook(lambda module, inputs, output: 1.5 * output)
    return model


def quantised(model):
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


def in_half_precision(model):
    return model.half()


def with_adapters(model):
    peft = pytest.importorskip("peft")
    model.add_adapter(peft.LoraConfig(target_modules="all-linear", init_lora_weights=False))
    return model.eval()


EXACT = (dispatched, offloaded, with_another_head, with_a_hook, with_adapters, copy.deepcopy)
ROUNDED = (prepared, quantised, in_half_precision)  # the tokens are rounded at another place


@pytest.mark.filterwarnings("ignore:.*(quantiz|torch.ao).*")
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("change", [*EXACT, *ROUNDED], ids=lambda change: change.__name__)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_full_subset_gives_the_models_own_answer(tiny_classifier, images, family, change, when):
    classifier, options = tiny_classifier(family), {"patch_size": 4} if family in ("resnet", "swin") else {}
    if when == "before":
        classifier = change(classifier)
        v = MaskedClassifier(classifier, **options)
    else:
        v = MaskedClassifier(classifier, **options)
        v.classifier = classifier = change(v.classifier)
    with torch.no_grad():
        own = classifier(images(2).to(classifier.dtype)).logits
        before = tiny_classifier(family)(images(2)).logits
    answer = v.logits(images(2), torch.ones(2, 1, 16, dtype=torch.bool))[:, 0]
    assert v.device == torch.device("cpu")
    tolerance = 1e-5 if change in EXACT else 0.05
    torch.testing.assert_close(answer.float(), own.float(), rtol=0, atol=tolerance)
    if change in (with_another_head, with_a_hook, with_adapters):
        assert (own - before).abs().max() > 100 * tolerance  # so that the test can tell both from each other


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda model: torch.compile(model, backend="eager")])
def test_wrappers_are_taken_off(tiny_classifier, images, wrap):
    classifier = tiny_classifier()
    expected = MaskedClassifier(classifier).logits(images(2), torch.ones(2, 1, 16, dtype=torch.bool))
    v = as_value_function(wrap(classifier))
    assert v.classifier is classifier
    assert torch.equal(v.logits(images(2), torch.ones(2, 1, 16, dtype=torch.bool)), expected)


def test_a_classifier_compiled_in_place_answers_for_subsets(tiny_classifier, images):
    classifier, subsets = tiny_classifier(), torch.rand(2, 3, 16) < 0.5
    expected = MaskedClassifier(classifier).logits(images(2), subsets)
    classifier.compile(backend="eager")
    assert torch.equal(MaskedClassifier(classifier).logits(images(2), subsets), expected)


def test_models_with_adapters_around_them_are_refused_with_the_way_out(tiny_classifier):
    peft = pytest.importorskip("peft")
    wrapped = peft.get_peft_model(tiny_classifier(), peft.LoraConfig(target_modules="all-linear"))
    with pytest.raises(TypeError, match=r"^classifier must be .*merge_and_unload\(\)$"):
        MaskedClassifier(wrapped)
    MaskedClassifier(wrapped.merge_and_unload())


@pytest.mark.parametrize("network", [nn.Linear(3, 3), nn.Sequential()])
def test_networks_of_an_unknown_kind_are_no_value_functions(network):
    with pytest.raises(TypeError, match="classifier must be an image classifier of transformers, got"):
        as_value_function(network)


@pytest.mark.parametrize("family", FAMILIES)
def test_masked_classifiers_can_be_pickled(tiny_classifier, images, family):
    v = MaskedClassifier(tiny_classifier(family), **({"patch_size": 4} if family in ("resnet", "swin") else {}))
    subsets, saved = torch.rand(2, 3, 16) < 0.5, io.BytesIO()
    torch.save(v, saved)
    saved.seek(0)
    for copied in (pickle.loads(pickle.dumps(v)), torch.load(saved, weights_only=False), copy.deepcopy(v)):
        assert torch.equal(copied.logits(images(2), subsets), v.logits(images(2), subsets))


def test_a_backbone_in_a_folder_is_refused(tiny_classifier, save_processor, tmp_path):
    tiny_classifier().base_model.save_pretrained(tmp_path)
    save_processor(tmp_path)
    with pytest.raises(ValueError, match=r"lacks 2 weights of a Dinov2ForImageClassification.*classifier.bias"):
        MaskedClassifier.from_pretrained(str(tmp_path))


class WithASecondHead(Dinov2ForImageClassification):
    """A user's own subclass, which transformers knows nothing of."""

    def __init__(self, config):
        super().__init__(config)
        self.classifier = nn.Sequential(nn.Linear(2 * config.hidden_size, 8), nn.Linear(8, config.num_labels))


def test_subclasses_are_taken_with_their_code_and_refused_without(tiny_classifier, save_processor, images, tmp_path):
    torch.manual_seed(0)
    classifier = WithASecondHead(tiny_classifier().config).eval()
    with torch.no_grad():
        own = classifier(images(2)).logits
    answer = MaskedClassifier(classifier).logits(images(2), torch.ones(2, 1, 16, dtype=torch.bool))[:, 0]
    torch.testing.assert_close(answer, own)
    classifier.save_pretrained(tmp_path)
    save_processor(tmp_path)
    with pytest.raises(ValueError, match="lacks 2 weights"):
        MaskedClassifier.from_pretrained(str(tmp_path))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tiny_classifier, save_processor, tmp_path, value):
    classifier = tiny_classifier()
    with torch.no_grad():
        classifier.classifier.bias[1] = value
    classifier.save_pretrained(tmp_path)
    save_processor(tmp_path)
    with pytest.raises(ValueError, match=r"NaN or infinite: classifier\.bias"):
        MaskedClassifier.from_pretrained(str(tmp_path))


def test_weights_of_another_shape_are_refused(tiny_classifier, save_processor, tmp_path):
    classifier = tiny_classifier(num_labels=3)
    classifier.save_pretrained(tmp_path)
    save_processor(tmp_path)
    config = AutoModelForImageClassification.from_pretrained(tmp_path).config
    config.num_labels = 5
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="cannot be loaded"):
        MaskedClassifier.from_pretrained(str(tmp_path))


def test_regression_is_refused(tiny_classifier):
    with pytest.raises(ValueError, match="problem_type is 'regression'; Salvage explains"):
        MaskedClassifier(tiny_classifier(num_labels=1, problem_type="regression"))


@pytest.mark.parametrize("masking", ["drop", "zero", "mean", "blur"])
@pytest.mark.parametrize("family", ["dinov2", "vit", "deit", "resnet", "swin"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models_take_pixels_in_float32(tiny_classifier, images, family, masking, dtype):
    if family in ("resnet", "swin") and masking == "drop":
        pytest.skip("there are no tokens to drop")
    options = {"masking": masking, **({"patch_size": 4} if family in ("resnet", "swin") else {})}
    subsets = torch.rand(2, 3, 16, generator=torch.Generator().manual_seed(0)) < 0.5
    expected = MaskedClassifier(tiny_classifier(family), **options).probabilities(images(2), subsets)
    half = MaskedClassifier(tiny_classifier(family).to(dtype), **options).probabilities(images(2), subsets)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, expected, rtol=0, atol=0.1)


def test_a_classifier_without_a_processor_needs_the_image_size(tiny_classifier, tmp_path):
    tiny_classifier().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"the image processor of .* cannot be loaded"):
        MaskedClassifier.from_pretrained(str(tmp_path))
    v = MaskedClassifier.from_pretrained(str(tmp_path), image_size=(16, 24))
    assert v.grid_size == (4, 6)
    assert v.processor is None
