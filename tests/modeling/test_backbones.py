"""Explainers of other classifiers than DINOv2's: their backbone, and the images that they make for it."""

import pytest
import torch
from transformers import AutoConfig, AutoModel

from salvage_hf.modeling import BACKBONES, SalvageConfig, SalvageModel
from salvage_hf.vision_families import freeze_mask_token

NUM_PREFIX = {"dinov2": 1, "dinov2_with_registers": 4, "dinov3_vit": 4, "vit": 1, "deit": 2, "beit": 1}
EXCHANGED = [[0.0, 0.0, 2.0, 0.5], [0.0, -1.5, 0.0, 0.0], [1.0, 0.25, 0.0, -0.5]]

every_kind = pytest.mark.parametrize("kind", BACKBONES)


@pytest.fixture
def explainer(tiny_classifier, tiny_backbone):
    """A factory: an explainer of a ResNet, with a backbone of a kind whose patches are 4 x 4 pixels."""

    def build(kind="dinov2", **config):
        torch.manual_seed(0)
        model = SalvageModel.from_backbone(tiny_backbone(kind), tiny_classifier("resnet"), **config)
        torch.nn.init.normal_(model.head.class_projection.weight)
        return model.eval()

    return build


# The images that a backbone gets


def literal_resize(row, length):
    """Bilinear with antialiasing: each pixel is a mean with weights that fall off linearly to both sides."""
    scale = len(row) / length
    reach, resized = max(scale, 1.0), []
    for place in range(length):
        centre = (place + 0.5) * scale
        weights = [max(0.0, 1 - abs(pixel + 0.5 - centre) / reach) for pixel in range(len(row))]
        total = sum(weight * value for weight, value in zip(weights, row.unbind(), strict=True))
        resized.append(total / sum(weights))
    return torch.stack(resized)


def literal_pixels(image, channel_map, size):
    """[3, H, W] -> [3, *size]."""
    mapped = torch.zeros_like(image)
    for channel, (*factors, constant) in enumerate(channel_map):
        for factor, values in zip(factors, image, strict=True):
            mapped[channel] += factor * values
        mapped[channel] += constant
    rows = literal_resize(mapped.transpose(0, 1), size[0])  # [H', 3, W]
    return literal_resize(rows.permute(2, 1, 0), size[1]).permute(1, 2, 0)


@pytest.mark.parametrize("patch_size", [2, 3, 4, 8, 10])
def test_images_are_made_as_the_literal_version_makes_them(explainer, images, patch_size):
    model = explainer(patch_size=patch_size, channel_map=EXCHANGED)
    pixel_values = images(2, 3 * patch_size, 2 * patch_size)
    made = model.backbone_pixels(pixel_values)
    assert made.shape == (2, 3, 12, 8)
    for image, of_image in zip(pixel_values, made, strict=True):
        torch.testing.assert_close(of_image, literal_pixels(image, EXCHANGED, (12, 8)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("patch_size", [3, 8, 10])
def test_a_patch_is_the_same_part_of_the_picture(explainer, patch_size):
    model = explainer(patch_size=patch_size)
    for patch in range(12):
        picture = torch.zeros(1, 3, 3, 4, patch_size, patch_size)
        picture[:, :, patch // 4, patch % 4] = 1
        made = model.backbone_pixels(picture.permute(0, 1, 2, 4, 3, 5).reshape(1, 3, 3 * patch_size, 4 * patch_size))
        means = torch.nn.functional.avg_pool2d(made, 4).mean(dim=1).flatten()
        assert means.argmax() == patch
        assert means[patch] > 0.7
        assert made.sum() * (patch_size / 4) ** 2 == pytest.approx(3 * patch_size**2, rel=0.25)


def test_images_that_fit_are_left_alone(explainer, images):
    pixel_values = images(2)
    assert explainer().backbone_pixels(pixel_values) is pixel_values


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(explainer, images, dtype):
    model = explainer(patch_size=8, channel_map=EXCHANGED)
    pixel_values = images(2, 32)
    made, expected = model.to(dtype).backbone_pixels(pixel_values.to(dtype)), model.backbone_pixels(pixel_values)
    assert made.dtype == dtype
    torch.testing.assert_close(made.float(), expected, rtol=0.05, atol=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.backbone_pixels(pixel_values), expected)


def test_a_grey_image_for_a_backbone_of_colours(explainer):
    model = explainer(channel_map=[[2.0, 0.0], [1.0, 0.5], [0.5, -1.0]])
    grey = torch.rand(2, 1, 16, 16)
    made = model.backbone_pixels(grey)
    torch.testing.assert_close(made, torch.cat([2 * grey, grey + 0.5, 0.5 * grey - 1], dim=1))
    with pytest.raises(ValueError, match=r"pixel_values must be a tensor \[B, 1, H, W\], got \[2, 3, 16, 16\]"):
        model(made)


def test_images_that_patches_do_not_divide_are_refused(explainer, images):
    with pytest.raises(ValueError, match="pixel_values are 16 x 20 pixels, which patches of 8 x 8 do not divide"):
        explainer(patch_size=8)(images(1, 16, 20))


# The backbone


@every_kind
@pytest.mark.parametrize(("height", "width"), [(32, 32), (48, 16), (40, 56)])
def test_the_patch_tokens_of_every_kind(explainer, images, kind, height, width):
    """With patches of 8 pixels; 16 x 16 is the size that fixed positions are for, so (32, 32) is not interpolated."""
    model = explainer(kind, patch_size=8)
    pixel_values = images(2, height, width)
    made = model.backbone_pixels(pixel_values)
    num_patches = height * width // 64
    assert made.shape[-2:] == (height // 2, width // 2)
    fixed = kind in ("vit", "deit", "beit") and (height, width) != (32, 32)
    with torch.no_grad():
        tokens = model.backbone(made, **({"interpolate_pos_encoding": True} if fixed else {})).last_hidden_state
        assert tokens.shape[1] == NUM_PREFIX[kind] + num_patches
        assert torch.equal(model.patch_features(pixel_values), tokens[:, NUM_PREFIX[kind] :])
        assert model(pixel_values).attributions.shape == (2, num_patches, 3)


@every_kind
def test_the_weights_are_the_backbones(explainer, tiny_backbone, kind):
    model, backbone = explainer(kind), tiny_backbone(kind).state_dict()
    ours = model.backbone.state_dict()
    assert {name for name in backbone if name not in ours} == {name for name in backbone if name.startswith("pooler")}
    assert all(torch.equal(weight, backbone[name]) for name, weight in ours.items())


@every_kind
def test_every_trained_weight_has_a_gradient(explainer, images, kind):
    """Otherwise distributed training would wait for it."""
    model = explainer(kind)
    freeze_mask_token(model.backbone)
    model(images(2)).positive_values.square().sum().backward()
    unused = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert unused == []


RANDOM = {
    "dinov2": {"drop_path_rate": 0.5, "hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5},
    "dinov3_vit": {"drop_path_rate": 0.5, "pos_embed_rescale": 2.0, "pos_embed_jitter": 2.0, "pos_embed_shift": 0.5},
    "vit": {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5},
    "beit": {"drop_path_rate": 0.9, "hidden_dropout_prob": 0.5},
}


@pytest.mark.parametrize("kind", RANDOM)
def test_nothing_is_random_in_training(tiny_classifier, tiny_backbone, images, kind):
    backbone = tiny_backbone(kind, **RANDOM[kind]).train()
    with torch.no_grad():
        assert not torch.equal(*(backbone(images(2)).last_hidden_state for _ in range(2)))
        model = SalvageModel.from_backbone(backbone, tiny_classifier("resnet")).train()
        assert torch.equal(*(model.patch_features(images(2)) for _ in range(2)))


@every_kind
def test_an_explainer_is_the_same_after_saving(explainer, images, kind, tmp_path):
    model = explainer(kind, patch_size=8, channel_map=EXCHANGED)
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path).eval()
    assert (again.config.patch_size, again.config.channel_map) == (8, EXCHANGED)
    with torch.no_grad():
        assert torch.equal(again(images(2)).attributions, model(images(2)).attributions)
    assert AutoConfig.from_pretrained(tmp_path).backbone_config.model_type == kind


@pytest.mark.parametrize("family", ["vit", "deit", "deit_teacher", "beit"])
def test_from_a_plain_vision_transformer(tiny_classifier, images, family):
    classifier = tiny_classifier(family)
    model = SalvageModel.from_classifier(classifier).eval()
    with torch.no_grad():
        tokens = classifier.base_model(images(2)).last_hidden_state
        assert torch.equal(model.patch_features(images(2)), tokens[:, -16:])


def test_other_models_are_refused(tiny_classifier):
    resnet = tiny_classifier("resnet")
    with pytest.raises(ValueError, match=r"\(model type 'resnet'\), whose backbone .* --explainer_backbone NAME or"):
        SalvageModel.from_classifier(resnet)
    with pytest.raises(ValueError, match=r"backbone is a ResNetForImageClassification .* needed is one of the types"):
        SalvageModel.from_backbone(resnet, resnet)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"backbone_config": {"model_type": "swin"}}, "backbone_config must be of one of dinov2, .* got 'swin'"),
        ({"patch_size": 0}, "patch_size must be a whole number from 1 to 100000, got 0"),
        ({"channel_map": []}, r"channel_map must be 3 rows, .* got \[\]"),
        ({"channel_map": EXCHANGED[:2]}, "channel_map must be 3 rows"),
        ({"channel_map": [[1.0], [1.0], [1.0]]}, "channel_map must be 3 rows"),
        ({"channel_map": [[1.0, 0.0], [1.0, 0.0], [1.0]]}, "channel_map must be 3 rows"),
        ({"channel_map": [[1.0, 0.0], [1.0, 0.0], [1.0, float("nan")]]}, "channel_map must be 3 rows"),
        ({"channel_map": [[1.0, 0.0], [1.0, 0.0], [1.0, "x"]]}, "channel_map must be 3 rows"),
    ],
)
def test_wrong_config(config, message):
    with pytest.raises(ValueError, match=message):
        SalvageConfig(**config)
