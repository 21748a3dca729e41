import json

import pytest
import torch
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    Dinov2Model,
    pipeline,
)

from salvage_hf.modeling import SalvageConfig, SalvageForImageClassification, SalvageModel, SalvageOutput

both_backbones = pytest.mark.parametrize("family", ["dinov2", "dinov2_with_registers"])
both_label_counts = pytest.mark.parametrize("num_labels", [1, 3])


def random_subsets(batch_size, num_subsets, num_patches, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch_size, num_subsets, num_patches, generator=generator) < 0.5


# ---------------------------------------------------------------------------------------------------------------------
# Forward


@both_backbones
@both_label_counts
@pytest.mark.parametrize(("height", "width"), [(16, 16), (24, 8)])
def test_shapes(salvage_model, images, family, num_labels, height, width):
    model = salvage_model(num_labels, family=family)
    output = model(images(2, height, width))
    num_patches = height * width // 16
    for name in ("attributions", "positive_values", "negative_values"):
        assert output[name].shape == (2, num_patches, num_labels), name
        assert output[name].std() > 0.01, name
    assert output.logits.shape == (2, num_labels)
    assert output.loss is None
    assert model.subset_logits(output, random_subsets(2, 5, num_patches)).shape == (2, 5, num_labels)


@both_label_counts
@pytest.mark.parametrize("logit_temperature", [1.0, 2.5])
def test_equations_3_4_and_6(salvage_model, images, num_labels, logit_temperature):
    model = salvage_model(num_labels, logit_temperature=logit_temperature)
    output = model(images(2))
    subsets = random_subsets(2, 4, 16)
    subsets[:, 0] = False
    subsets[:, 1] = True
    logits = model.subset_logits(output, subsets)
    for b in range(2):
        for m in range(4):
            total = torch.zeros(num_labels)
            for patch in range(16):
                values = output.positive_values if subsets[b, m, patch] else output.negative_values
                total = total + values[b, patch]
            torch.testing.assert_close(logits[b, m], total / logit_temperature, rtol=1e-5, atol=1e-5)
        full = sum(output.positive_values[b, patch] for patch in range(16)) / logit_temperature
        torch.testing.assert_close(output.logits[b], full, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.attributions, output.positive_values - output.negative_values)
    # Efficiency: the values of all patches sum to u(N) - u(empty).
    gain = logits[:, 1] - logits[:, 0]
    torch.testing.assert_close(output.attributions.sum(1) / logit_temperature, gain, rtol=1e-4, atol=1e-5)


@both_label_counts
def test_values_are_centred_over_classes(salvage_model, images, num_labels):
    output = salvage_model(num_labels)(images(2))
    for values in (output.positive_values, output.negative_values):
        if num_labels > 1:
            torch.testing.assert_close(values.mean(-1), torch.zeros(2, 16), rtol=0, atol=1e-6)
        else:
            assert values.abs().mean() > 0.01  # a single label is not centred


@both_backbones
@both_label_counts
def test_a_fresh_model_predicts_uniformly(tiny_classifier, images, family, num_labels):
    model = SalvageModel.from_classifier(tiny_classifier(family, num_labels=num_labels))
    output = model(images(2))
    assert torch.equal(model.subset_logits(output, random_subsets(2, 3, 16)), torch.zeros(2, 3, num_labels))
    assert torch.equal(output.attributions, torch.zeros(2, 16, num_labels))
    output.attributions.square().sum().backward()  # the next test shows that it can learn


def test_a_fresh_model_has_a_gradient(tiny_classifier, images):
    model = SalvageModel.from_classifier(tiny_classifier())
    nn_loss = torch.nn.functional.cross_entropy(model(images(2)).logits, torch.tensor([0, 2]))
    nn_loss.backward()
    assert model.head.class_projection.weight.grad.abs().max() > 0


def test_values_depend_on_every_part_of_the_model(salvage_model, images):
    model = salvage_model(family="dinov2_with_registers")
    output = model(images(2))
    (output.positive_values.square().sum() + output.negative_values.sum(1).square().sum()).backward()
    unused = [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert unused == ["backbone.embeddings.mask_token"]


@both_backbones
def test_patch_features_stand_for_pixels(salvage_model, images, family):
    model = salvage_model(family=family)
    features = model.patch_features(images(2))
    num_prefix_tokens = 4 if family == "dinov2_with_registers" else 1
    assert torch.equal(features, model.backbone(images(2)).last_hidden_state[:, num_prefix_tokens:])
    assert torch.equal(model(patch_features=features).attributions, model(images(2)).attributions)


def test_exactly_one_input(salvage_model, images):
    model = salvage_model()
    with pytest.raises(ValueError, match="exactly one of pixel_values and patch_features"):
        model()
    with pytest.raises(ValueError, match="exactly one of pixel_values and patch_features"):
        model(images(1), patch_features=model.patch_features(images(1)))


def test_images_that_patches_do_not_divide_are_refused(salvage_model, images):
    for height, width in ((18, 16), (16, 18)):
        with pytest.raises(ValueError, match=f"{height} x {width} pixels, which patches of 4 x 4 do not divide"):
            salvage_model()(images(1, height, width))


@pytest.mark.parametrize("model_class", [SalvageModel, SalvageForImageClassification])
def test_tuples_on_request(salvage_model, images, model_class):
    model = salvage_model(model_class=model_class)
    output = model(images(1), return_dict=False)
    assert isinstance(output, tuple)
    assert torch.equal(output[0], model(images(1)).logits)


@pytest.mark.parametrize("model_class", [SalvageModel, SalvageForImageClassification])
@pytest.mark.parametrize("unknown", ["num_items_in_batch", "bool_masked_pos", "interpolate_pos_encoding"])
def test_unknown_arguments_are_refused(salvage_model, images, model_class, unknown):
    """If any keyword were accepted, Trainer would rely on it, and not divide the loss by the accumulation steps."""
    with pytest.raises(TypeError, match=unknown):
        salvage_model(model_class=model_class)(images(1), **{unknown: None})


def test_the_head_uses_the_attention_that_was_chosen(salvage_model, images):
    """The head uses it as the backbone does, and every implementation gives the same values."""
    model, calls = salvage_model(), []

    def counted(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
        calls.append(type(module).__name__)
        weights = (query @ key.transpose(-1, -2) * scaling).softmax(dim=-1)
        return (weights @ value).transpose(1, 2).contiguous(), weights

    with torch.no_grad():
        expected = model(images(2)).attributions  # sdpa, transformers' default
        assert model.config._attn_implementation == "sdpa"
        AttentionInterface.register("counted", counted)
        for name in ("eager", "counted"):
            model.set_attn_implementation(name)
            torch.testing.assert_close(model(images(2)).attributions, expected, rtol=1e-4, atol=1e-5)
    assert calls.count("SalvageMaskTransformerLayer") == model.config.head_num_layers
    assert calls.count("Dinov2Attention") == model.config.backbone_config.num_hidden_layers


def test_the_attention_is_chosen_at_loading(salvage_model, tmp_path):
    salvage_model().save_pretrained(tmp_path)
    model = AutoModel.from_pretrained(tmp_path, attn_implementation="eager")
    assert {model.config._attn_implementation, model.backbone.config._attn_implementation} == {"eager"}


def test_subset_logits_keep_float32_under_autocast(salvage_model):
    """The logits are sums over hundreds of patches, of which bfloat16 would keep three digits."""
    generator = torch.Generator().manual_seed(0)
    positive, negative = torch.randn(2, 1, 400, 3, generator=generator)
    output = SalvageOutput(
        attributions=positive - negative, positive_values=positive, negative_values=negative, logits=positive.sum(1)
    )
    model, subsets = salvage_model(), random_subsets(1, 8, 400)
    expected = model.subset_logits(output, subsets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model.subset_logits(output, subsets)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(salvage_model, images, tmp_path, dtype):
    model = salvage_model(family="dinov2_with_registers")
    model.save_pretrained(tmp_path)
    half = AutoModel.from_pretrained(tmp_path, dtype=dtype)
    assert {p.dtype for p in half.parameters()} == {dtype}
    output, expected = half(images(2)), model(images(2))
    assert output.attributions.dtype == torch.float32  # values are summed over all patches
    error = (output.attributions - expected.attributions).abs().max() / expected.attributions.abs().max()
    assert error < (0.02 if dtype == torch.float16 else 0.1)


@both_label_counts
def test_labels_give_a_loss(salvage_model, images, num_labels):
    model = salvage_model(num_labels, SalvageForImageClassification)
    labels = torch.tensor([0, 1, max(1, num_labels - 1)])
    output = model(images(3), labels=labels)
    probabilities = output.logits.sigmoid() if num_labels == 1 else output.logits.softmax(-1)
    expected = 0.0
    for b, label in enumerate(labels.tolist()):
        p = probabilities[b, label] if num_labels > 1 else (probabilities[b, 0] if label else 1 - probabilities[b, 0])
        expected = expected - p.log() / 3
    torch.testing.assert_close(output.loss, expected)
    assert torch.equal(output.attributions, model(images(3)).attributions)
    features = model.patch_features(images(3))
    torch.testing.assert_close(model(patch_features=features, labels=labels).loss, output.loss)


def test_gradient_checkpointing_gives_the_same_gradients(salvage_model, images):
    def gradients(checkpointing):
        model = salvage_model().train()
        if checkpointing:
            model.gradient_checkpointing_enable()
            assert all(layer.gradient_checkpointing for layer in model.head.layers)
        model(images(2)).attributions.square().sum().backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    plain, checkpointed = gradients(False), gradients(True)
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient)


# ---------------------------------------------------------------------------------------------------------------------
# Where the weights come from


@both_backbones
@both_label_counts
def test_from_classifier_copies_the_backbone(tiny_classifier, images, family, num_labels):
    classifier = tiny_classifier(family, num_labels=num_labels)
    model = SalvageModel.from_classifier(classifier, head_num_layers=1, logit_temperature=2.0).eval()
    expected = classifier.base_model.state_dict()
    assert model.backbone.state_dict().keys() == expected.keys()
    for name, tensor in model.backbone.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
        assert tensor.data_ptr() != expected[name].data_ptr(), f"{name} is shared with the frozen classifier"
    assert model.config.id2label == classifier.config.id2label
    assert model.config.label2id == classifier.config.label2id
    assert (model.config.num_labels, len(model.head.layers), model.config.logit_temperature) == (num_labels, 1, 2.0)
    assert classifier.config.num_labels == num_labels  # the classifier's own config is left alone
    with torch.no_grad():
        features = classifier.base_model(images(1)).last_hidden_state[:, -16:]
        assert torch.equal(model.patch_features(images(1)), features)


def test_from_a_half_precision_classifier_comes_a_float32_explainer(tiny_classifier):
    model = SalvageModel.from_classifier(tiny_classifier().half())
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_from_classifier_keeps_the_class_it_is_called_on(tiny_classifier):
    assert type(SalvageForImageClassification.from_classifier(tiny_classifier())) is SalvageForImageClassification


def test_from_classifier_refuses_other_models(tiny_classifier):
    with pytest.raises(ValueError, match=r"SwinForImageClassification \(model type 'swin'\)"):
        SalvageModel.from_classifier(tiny_classifier("swin"))
    with pytest.raises(ValueError, match="Dinov2Model, a backbone without a classification head"):
        SalvageModel.from_classifier(tiny_classifier().base_model)


@both_backbones
def test_warm_start_from_a_dinov2_folder(tiny_classifier, family, tmp_path):
    """The backbone comes from the checkpoint, and no parameter of the head is left as uninitialised memory."""
    backbone = tiny_classifier(family).base_model
    backbone.save_pretrained(tmp_path)
    config = SalvageConfig(backbone_config=AutoConfig.from_pretrained(tmp_path), num_labels=3, initializer_range=0.01)
    model, loading = SalvageModel.from_pretrained(tmp_path, config=config, output_loading_info=True)
    assert not loading["unexpected_keys"]
    assert {name.split(".")[0] for name in loading["missing_keys"]} == {"head"}
    for name, tensor in model.backbone.state_dict().items():
        assert torch.equal(tensor, backbone.state_dict()[name]), name
    for name, tensor in model.head.state_dict().items():
        if "layernorm" in name and name.endswith("weight"):
            assert torch.equal(tensor, torch.ones_like(tensor)), name
        elif name.endswith("bias") or name == "class_projection.weight":
            assert torch.equal(tensor, torch.zeros_like(tensor)), name
        else:
            assert 0.005 < tensor.std() < 0.02, name
            assert tensor.abs().max() < 0.1, name


def test_an_incomplete_checkpoint_initialises_what_is_missing_only(salvage_model, tmp_path):
    from safetensors.torch import load_file, save_file

    model = salvage_model()
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["head.class_embeddings"], weights["head.layers.1.qkv.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    again = SalvageModel.from_pretrained(tmp_path)
    expected = model.state_dict()
    for name, tensor in again.state_dict().items():
        if name in ("head.class_embeddings", "head.layers.1.qkv.weight"):
            assert 0.01 < tensor.std() < 0.03, name
        else:
            assert torch.equal(tensor, expected[name]), name


# ---------------------------------------------------------------------------------------------------------------------
# Saving, loading, pipelines


@both_backbones
@both_label_counts
@pytest.mark.parametrize("saved", [SalvageModel, SalvageForImageClassification])
def test_each_class_loads_what_the_other_saved(salvage_model, images, tmp_path, family, num_labels, saved):
    model = salvage_model(num_labels, saved, family)
    model.save_pretrained(tmp_path)
    for auto_class, expected_class in (
        (AutoModel, SalvageModel),
        (AutoModelForImageClassification, SalvageForImageClassification),
    ):
        again, loading = auto_class.from_pretrained(tmp_path, output_loading_info=True)
        assert type(again) is expected_class
        assert not loading["missing_keys"]
        assert not loading["unexpected_keys"]
        with torch.no_grad():
            output, expected = again(images(2)), model(images(2))
        assert torch.equal(output.attributions, expected.attributions)
        assert torch.equal(output.logits, expected.logits)


@both_label_counts
def test_image_classification_pipeline(salvage_model, save_processor, tmp_path, num_labels):
    from PIL import Image

    model = salvage_model(num_labels, id2label={k: f"label {k}" for k in range(num_labels)})
    model.save_pretrained(tmp_path)
    save_processor(tmp_path)
    photo = Image.effect_noise((40, 30), 64).convert("RGB")
    results = pipeline("image-classification", model=str(tmp_path))(photo)
    pixel_values = AutoImageProcessor.from_pretrained(tmp_path)(photo, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        logits = model(pixel_values).logits[0]
    probabilities = logits.sigmoid() if num_labels == 1 else logits.softmax(-1)
    assert len(results) == num_labels
    for result in results:
        expected = probabilities[int(result["label"].removeprefix("label "))].item()
        assert result["score"] == pytest.approx(expected, abs=1e-5)


def test_no_local_path_is_saved(tiny_classifier, tmp_path):
    """Whether a classifier or a backbone was loaded from a folder, and also after a second saving."""
    classifier = tiny_classifier()
    classifier.save_pretrained(tmp_path / "classifier")
    classifier.base_model.save_pretrained(tmp_path / "backbone")
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "classifier")
    SalvageModel.from_classifier(loaded).save_pretrained(tmp_path / "from_classifier")
    config = SalvageConfig(backbone_config=AutoConfig.from_pretrained(tmp_path / "backbone"), num_labels=3)
    warm = SalvageModel.from_pretrained(tmp_path / "backbone", config=config)
    warm.save_pretrained(tmp_path / "warm")
    AutoModel.from_pretrained(tmp_path / "warm").save_pretrained(tmp_path / "again")
    for folder in ("from_classifier", "warm", "again"):
        for file in (tmp_path / folder).glob("*.json"):
            assert str(tmp_path) not in file.read_text(), file.name
        saved = json.loads((tmp_path / folder / "config.json").read_text())
        assert not saved["backbone_config"].get("_name_or_path"), folder


def test_the_backbone_can_be_taken_out(salvage_model, images, tmp_path):
    model = salvage_model()
    model.backbone.save_pretrained(tmp_path)
    backbone = Dinov2Model.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(backbone(images(1)).last_hidden_state[:, 1:], model.patch_features(images(1)))


# ---------------------------------------------------------------------------------------------------------------------
# Configuration


def test_default_config_is_the_papers_backbone():
    config = SalvageConfig()
    backbone = config.backbone_config
    assert (backbone.model_type, backbone.hidden_size, backbone.num_hidden_layers) == ("dinov2_with_registers", 768, 12)
    assert (backbone.patch_size, backbone.num_register_tokens) == (14, 4)
    assert (config.head_hidden_size, config.head_num_attention_heads, config.head_num_layers) == (768, 12, 2)
    assert config.logit_temperature == 1.0
    assert (config.objective, config.paired_values) == ("salvage", True)


def test_config_survives_saving(tmp_path):
    config = SalvageConfig(
        backbone_config={"model_type": "dinov2", "hidden_size": 32, "num_attention_heads": 2, "patch_size": 4},
        head_hidden_size=64,
        head_num_layers=3,
        head_num_attention_heads=8,
        head_mlp_ratio=2,
        objective="fastshap",
        paired_values=False,
        logit_temperature=1.5,
        initializer_range=0.1,
        id2label={0: "cat", 1: "dog", 2: "fox"},
        label2id={"cat": 0, "dog": 1, "fox": 2},
    )
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert type(again) is SalvageConfig
    first, second = config.to_dict(), again.to_dict()
    first.pop("_name_or_path", None)
    second.pop("_name_or_path", None)
    assert second == first
    assert again.backbone_config.hidden_size == 32
    assert again.num_labels == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"head_hidden_size": 100, "head_num_attention_heads": 12},
            "head_hidden_size=100 .* head_num_attention_heads=12",
        ),
        ({"logit_temperature": 0.0}, r"logit_temperature must be positive, got 0\.0"),
        ({"logit_temperature": float("nan")}, "logit_temperature must be positive, got nan"),
        ({"head_num_layers": -1}, "head_num_layers must be a whole number from 1 to 100000, got -1"),
        ({"head_num_layers": 2.5}, "head_num_layers must be a whole number from 1 to 100000, got 2.5"),
        ({"head_mlp_ratio": 0}, "head_mlp_ratio must be a whole number"),
        ({"num_labels": 10**9}, "num_labels must be a whole number from 1 to 100000, got 1000000000"),
        ({"num_labels": 0}, "num_labels must be a whole number"),
        ({"backbone_config": {"model_type": "dinov2", "patch_size": 0}}, "patch_size must be a whole number"),
        ({"backbone_config": {"model_type": "dinov2", "image_size": 99_999}}, "image_size must be at most 500 patches"),
        ({"backbone_config": {"model_type": "dinov2", "image_size": 10**8}}, "image_size must be a whole number"),
    ],
)
def test_wrong_config(arguments, message):
    with pytest.raises(ValueError, match=message):
        SalvageConfig(**arguments)
