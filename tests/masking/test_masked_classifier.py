import copy

import numpy as np
import pytest
import torch
from partial_images import N, TokenCounter, masked, random_subsets
from torch import nn
from transformers import (
    AttentionInterface,
    AutoModelForImageClassification,
    Dinov2Config,
    Dinov2Model,
    Siglip2Config,
    Siglip2ForImageClassification,
)

from salvage_hf import subsets
from salvage_hf.masking import MaskedClassifier
from salvage_hf.masking.strategies import STRATEGIES, gaussian_blur
from salvage_hf.vision_families import FAMILIES

NUM_PREFIX = {"dinov2": 1, "dinov2_with_registers": 4, "vit": 1, "deit": 2, "deit_teacher": 2}
DROP = list(NUM_PREFIX)
MASK_TOKEN = ["dinov2", "dinov2_with_registers"]
PIXELS = ["dinov2", "vit", "resnet", "swin"]
# every family under every strategy that may not see hidden pixels; blur lets them shine through
FAMILY_AND_MASKING = [
    *[(family, "drop") for family in DROP],
    *[(family, "mask_token") for family in MASK_TOKEN],
    *[(family, masking) for family in PIXELS for masking in ("zero", "mean")],
]


def first_layer(classifier):
    return FAMILIES[classifier.config.model_type].block_list(classifier)[0]


# ---------------------------------------------------------------------------------------------------------------------
# The literal versions


def attention_masked_logits(classifier, pixel_values, subset, num_prefix, **options):
    """Image [C, H, W], subset [N]: all tokens pass all layers; hidden ones are masked as keys in every attention."""
    visible = torch.cat([torch.ones(num_prefix, dtype=torch.bool), subset])

    def attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5  # [1, heads, L, L]
        scores = scores.masked_fill(~visible, -torch.inf)
        return (scores.softmax(dim=-1) @ value).transpose(1, 2).contiguous(), None

    AttentionInterface.register("hidden_keys", attention)
    model = copy.deepcopy(classifier)
    model.set_attn_implementation("hidden_keys")
    with torch.no_grad():
        tokens = model.base_model(pixel_values[None], **options).last_hidden_state[0]
        if hasattr(model, "distillation_classifier"):
            return (model.cls_classifier(tokens[0]) + model.distillation_classifier(tokens[1])) / 2
        if not classifier.config.model_type.startswith("dinov2"):
            return model.classifier(tokens[0])
        pooled = torch.zeros_like(tokens[0])
        for patch in range(len(subset)):
            if subset[patch]:
                pooled += tokens[num_prefix + patch] / subset.sum()
        return model.classifier(torch.cat([tokens[0], pooled]))


def mask_token_logits(classifier, pixel_values, subset, num_prefix):
    """DINOv2's own masking of patches, as in its pre-training, and the head on top of it."""
    with torch.no_grad():
        tokens = classifier.base_model(pixel_values[None], bool_masked_pos=~subset[None]).last_hidden_state[0]
        return classifier.classifier(torch.cat([tokens[0], tokens[num_prefix:].mean(dim=0)]))


def literal_blur(image, sigma):
    """[C, H, W]: every pixel the Gaussian-weighted mean of a square window, the image mirrored at its borders."""
    height, width = image.shape[-2:]
    radius = min(int(3 * sigma), min(height, width) - 1)
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets[:, None] ** 2 + offsets[None, :] ** 2) / sigma**2)
    weights /= weights.sum()

    def mirror(index, length):
        return np.where(index < 0, -index, np.where(index >= length, 2 * (length - 1) - index, index))

    out = np.zeros_like(image)
    for y in range(height):
        for x in range(width):
            window = image[:, mirror(y + offsets, height)[:, None], mirror(x + offsets, width)[None, :]]
            out[:, y, x] = (window * weights).sum(axis=(1, 2))
    return out


def literal_pixels(image, subset, masking, patch_size=4):
    """What the classifier should see, pixel by pixel: [C, H, W]."""
    channels, height, width = image.shape
    visible = np.zeros((height, width), dtype=bool)
    for y in range(height):
        for x in range(width):
            visible[y, x] = subset[(y // patch_size) * (width // patch_size) + x // patch_size]
    out = np.zeros_like(image)
    blurred = literal_blur(image, patch_size) if masking == "blur" else None
    for c in range(channels):
        for y in range(height):
            for x in range(width):
                if visible[y, x]:
                    out[c, y, x] = image[c, y, x]
                elif masking == "mean" and visible.any():
                    out[c, y, x] = image[c][visible].mean()
                elif masking == "blur":
                    out[c, y, x] = blurred[c, y, x]
    return out


# ---------------------------------------------------------------------------------------------------------------------
# v(S) itself


@pytest.mark.parametrize("num_labels", [1, 3])
@pytest.mark.parametrize("family", DROP)
def test_dropping_equals_masking_in_every_attention_layer(tiny_classifier, images, family, num_labels):
    classifier = tiny_classifier(family, num_labels=num_labels)
    pixel_values, subsets = images(2), random_subsets(2, 5)
    subsets[0, 0] = False
    subsets[1, 1] = True
    logits = masked(classifier).logits(pixel_values, subsets)
    assert logits.shape == (2, 5, num_labels)
    assert logits.std() > 0.1, "the random classifier gives every subset the same logits: the test would prove nothing"
    for b in range(2):
        for m in range(5):
            expected = attention_masked_logits(classifier, pixel_values[b], subsets[b, m], NUM_PREFIX[family])
            torch.testing.assert_close(logits[b, m], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", MASK_TOKEN)
def test_mask_token_equals_the_models_own_masking(tiny_classifier, images, family):
    classifier = tiny_classifier(family)
    pixel_values, subsets = images(2), random_subsets(2, 4)
    logits = masked(classifier, "mask_token").logits(pixel_values, subsets)
    for b in range(2):
        for m in range(4):
            expected = mask_token_logits(classifier, pixel_values[b], subsets[b, m], NUM_PREFIX[family])
            torch.testing.assert_close(logits[b, m], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("masking", ["zero", "mean", "blur"])
@pytest.mark.parametrize("family", ["dinov2", "resnet", "swin"])
def test_pixel_strategies_equal_literal_loops(tiny_classifier, images, family, masking):
    classifier = tiny_classifier(family)
    pixel_values, subsets = images(2), random_subsets(2, 2)
    subsets[0, 0] = False
    logits = masked(classifier, masking).logits(pixel_values, subsets)
    for b in range(2):
        for m in range(2):
            seen = literal_pixels(pixel_values[b].double().numpy(), subsets[b, m].numpy(), masking)
            with torch.no_grad():
                expected = classifier(torch.from_numpy(seen)[None].float()).logits[0]
            torch.testing.assert_close(logits[b, m], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("height", "width", "sigma"), [(16, 16, 4), (8, 24, 4), (12, 12, 1)])
def test_gaussian_blur_equals_literal_loops(images, height, width, sigma):
    pixel_values = images(1, height, width)
    expected = literal_blur(pixel_values[0].double().numpy(), sigma)
    blurred = gaussian_blur(pixel_values, sigma)[0].double()
    torch.testing.assert_close(blurred, torch.from_numpy(expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("family", "masking"), FAMILY_AND_MASKING)
def test_hidden_pixels_change_nothing_by_one_bit(tiny_classifier, images, family, masking):
    v = masked(tiny_classifier(family), masking)
    pixel_values, others = images(1), images(1, seed=1) * 3
    subsets = random_subsets(1, 6)
    subsets[:, 0] = False
    for subset in subsets.unbind(1):
        visible = subset.view(1, 1, 4, 4).repeat_interleave(4, -2).repeat_interleave(4, -1)
        logits = v.logits(pixel_values, subset[:, None])
        changed = v.logits(torch.where(visible, pixel_values, others), subset[:, None])
        assert torch.equal(logits, changed)
        if visible.any():
            assert not torch.equal(logits, v.logits(torch.where(visible, others, pixel_values), subset[:, None]))


def test_hidden_pixels_change_nothing_in_the_real_classifier(imagenette_classifier, imagenette_images):
    v = MaskedClassifier.from_pretrained(imagenette_classifier)
    assert v.grid_size == (8, 8)
    assert v.num_patches == 64  # the processor's 112 px, not the config's 518
    pixel_values = imagenette_images[0][:2]
    subsets = random_subsets(2, 1, 64, seed=3)
    visible = subsets.view(2, 1, 8, 8).repeat_interleave(14, -2).repeat_interleave(14, -1)
    logits = v.logits(pixel_values, subsets)
    assert torch.equal(logits, v.logits(torch.where(visible, pixel_values, pixel_values.flip(0)), subsets))
    for b in range(2):
        expected = attention_masked_logits(v.classifier, pixel_values[b], subsets[b, 0], 1)
        torch.testing.assert_close(logits[b, 0], expected, rtol=0, atol=1e-4)


def test_the_real_classifier_recognises_whole_photographs(imagenette_classifier, imagenette_images):
    v = MaskedClassifier.from_pretrained(imagenette_classifier)
    pixel_values, labels = imagenette_images
    full = torch.ones(len(labels), 1, 64, dtype=torch.bool)
    assert (v.probabilities(pixel_values, full)[:, 0].argmax(-1) == labels).sum() >= 9


@pytest.mark.parametrize(("family", "masking"), [*FAMILY_AND_MASKING, ("dinov2", "blur"), ("resnet", "blur")])
def test_the_full_subset_gives_the_classifiers_own_logits(tiny_classifier, images, family, masking):
    classifier = tiny_classifier(family)
    pixel_values = images(3)
    full = torch.ones(3, 2, N, dtype=torch.bool)
    with torch.no_grad():
        expected = classifier(pixel_values).logits
    v = masked(classifier, masking)
    torch.testing.assert_close(v.logits(pixel_values, full), expected[:, None].expand(-1, 2, -1), rtol=0, atol=1e-5)
    torch.testing.assert_close(v.whole_logits(pixel_values), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("family", "masking"), FAMILY_AND_MASKING)
def test_the_empty_subset_is_the_same_for_all_images(tiny_classifier, images, family, masking):
    v = masked(tiny_classifier(family), masking)
    logits = v.logits(images(3), torch.zeros(3, 2, N, dtype=torch.bool))
    # Some processors' matrix products round equal rows differently; "drop" computes one row for all images.
    tolerance = 0 if masking == "drop" else 1e-5
    torch.testing.assert_close(logits, logits[:1, :1].expand_as(logits), rtol=0, atol=tolerance)
    assert logits.isfinite().all()
    # also when other subsets are asked for in the same call
    subsets = random_subsets(2, 3)
    subsets[:, 1] = False
    torch.testing.assert_close(v.logits(images(2, seed=5), subsets)[:, 1], logits[:2, 0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", MASK_TOKEN)
def test_the_patch_mean_of_the_empty_subset_is_zero(tiny_classifier, images, family):
    classifier = tiny_classifier(family)
    empty = torch.zeros(1, 1, N, dtype=torch.bool)
    before = masked(classifier).logits(images(1), empty)
    nn.init.zeros_(classifier.classifier.weight[:, 32:])  # the half of the head that reads the patch mean
    assert torch.equal(before, masked(classifier).logits(images(1), empty))


@pytest.mark.parametrize(
    ("family", "token"),
    [("dinov2", "cls_token"), ("dinov2_with_registers", "register_tokens"), ("deit", "distillation_token")],
)
def test_prefix_tokens_are_always_visible(tiny_classifier, images, family, token):
    classifier = tiny_classifier(family)
    subsets = torch.zeros(1, 2, N, dtype=torch.bool)
    subsets[0, 1, 3] = True
    before = masked(classifier).logits(images(1), subsets)
    getattr(classifier.base_model.embeddings, token).data.mul_(-1)
    assert ((before - masked(classifier).logits(images(1), subsets)).abs().amax(-1) > 1e-3).all()


@pytest.mark.parametrize("family", ["dinov2", "dinov2_with_registers"])
@pytest.mark.parametrize(("height", "width"), [(24, 24), (8, 20)])
def test_dinov2_takes_other_image_sizes(tiny_classifier, images, family, height, width):
    classifier = tiny_classifier(family)
    v = masked(classifier)
    pixel_values = images(1, height, width)
    assert v.patch_grid(pixel_values) == (height // 4, width // 4)
    subsets = random_subsets(1, 3, height * width // 16)
    logits = v.logits(pixel_values, subsets)
    for m in range(3):
        expected = attention_masked_logits(classifier, pixel_values[0], subsets[0, m], NUM_PREFIX[family])
        torch.testing.assert_close(logits[0, m], expected, rtol=0, atol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Batching


@pytest.mark.parametrize("masking", ["drop", "mask_token", "mean"])
@pytest.mark.parametrize("chunk_size", [1, 7, 40, 10**6])
def test_chunk_size_does_not_change_numbers(tiny_classifier, images, masking, chunk_size):
    classifier = tiny_classifier()
    pixel_values, subsets = images(3), random_subsets(3, 5)
    subsets[0, 0] = False
    expected = masked(classifier, masking).logits(pixel_values, subsets)
    logits = masked(classifier, masking, chunk_size=chunk_size).logits(pixel_values, subsets)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("family", "masking"), [("dinov2", "drop"), ("dinov2", "mask_token"), ("resnet", "zero")])
def test_mixed_sizes_and_duplicates_come_back_in_their_places(tiny_classifier, images, family, masking):
    v = masked(tiny_classifier(family), masking)
    pixel_values = images(3)
    subsets = random_subsets(3, 6)
    subsets[:, 4] = subsets[:, 1]
    subsets[1, 2] = False
    logits = v.logits(pixel_values, subsets)
    torch.testing.assert_close(logits[:, 4], logits[:, 1], rtol=0, atol=1e-6)
    for b in range(3):
        for m in range(6):
            alone = v.logits(pixel_values[b : b + 1], subsets[b : b + 1, m : m + 1])[0, 0]
            torch.testing.assert_close(logits[b, m], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("masking", ["drop", "mask_token"])
@pytest.mark.parametrize("family", MASK_TOKEN)
@pytest.mark.parametrize("chunk_size", [50, 64])
def test_no_forward_holds_more_tokens_than_chunk_size(tiny_classifier, images, family, masking, chunk_size):
    classifier = tiny_classifier(family)
    counter = TokenCounter(first_layer(classifier))
    masked(classifier, masking, chunk_size=chunk_size).logits(images(3), random_subsets(3, 8))
    assert len(counter.calls) > 1
    assert max(rows * length for rows, length in counter.calls) <= chunk_size


def test_no_forward_holds_more_patches_than_chunk_size(tiny_classifier, images):
    classifier = tiny_classifier("resnet")
    counter = TokenCounter(classifier.base_model)
    masked(classifier, "zero", chunk_size=4 * N).logits(images(3), random_subsets(3, 5))
    assert [rows for rows, _ in counter.calls] == [4, 4, 4, 3]


def test_large_patches_count_by_their_pixels(tiny_classifier, images):
    """An image of 32 x 32 pixels with four patches of 16 x 16 counts as four squares of 16 x 16."""
    classifier = tiny_classifier("resnet")
    counter = TokenCounter(classifier.base_model)
    v = MaskedClassifier(classifier, masking="zero", patch_size=32, chunk_size=12)
    v.logits(images(3, 32), torch.ones(3, 2, 1, dtype=torch.bool))
    assert [rows for rows, _ in counter.calls] == [3, 3]


# ---------------------------------------------------------------------------------------------------------------------
# Costs


@pytest.mark.parametrize("family", DROP)
def test_dropped_patches_cost_nothing(tiny_classifier, images, family):
    classifier = tiny_classifier(family)
    counter = TokenCounter(first_layer(classifier))
    subsets = random_subsets(3, 6)
    subsets[..., 0] = True
    masked(classifier, chunk_size=64).logits(images(3), subsets)
    assert counter.tokens == (NUM_PREFIX[family] + subsets.sum(-1)).sum()


def test_empty_subsets_cost_one_pass_of_the_prefix_tokens(tiny_classifier, images):
    classifier = tiny_classifier("dinov2_with_registers")
    counter = TokenCounter(first_layer(classifier))
    masked(classifier).logits(images(3), torch.zeros(3, 6, N, dtype=torch.bool))
    assert counter.calls == [(1, 4)]


@pytest.mark.parametrize("num_subsets", [1, 9])
def test_images_are_embedded_once_for_all_subsets(tiny_classifier, images, num_subsets):
    classifier = tiny_classifier()
    v = masked(classifier, chunk_size=20)
    counter = TokenCounter(classifier.base_model.embeddings)
    embedded = v.embed(images(3))
    assert len(counter.calls) == 1
    subsets = random_subsets(3, num_subsets)
    logits = v.logits_of(embedded, subsets)
    assert len(counter.calls) == 1
    torch.testing.assert_close(logits, v(images(3), subsets))


# ---------------------------------------------------------------------------------------------------------------------
# Gradients, and the classifier left as it was found


@pytest.mark.parametrize(
    ("family", "masking"), [("dinov2", "drop"), ("vit", "drop"), ("dinov2", "mask_token"), ("resnet", "mean")]
)
def test_forward_has_gradients_and_logits_has_none(tiny_classifier, images, family, masking):
    classifier = tiny_classifier(family)
    v = masked(classifier, masking)
    pixel_values, subsets = images(1).requires_grad_(), random_subsets(1, 2, seed=1)
    subsets[:] = torch.arange(N) < 5
    assert not v.logits(pixel_values, subsets).requires_grad
    assert not v.probabilities(pixel_values, subsets).requires_grad
    v(pixel_values, subsets).square().sum().backward()
    moved = (pixel_values.grad.abs().amax(1) > 0).view(4, 4, 4, 4).any(3).any(1).flatten()  # per patch
    assert torch.equal(moved, subsets[0, 0])
    names = [n for n, p in classifier.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert [n for n in names if "mask_token" not in n] == []


def test_the_gradients_are_those_of_a_step_on_the_classifier(tiny_classifier, images):
    """Masked fine-tuning goes through the wrapper, and must train the classifier itself."""
    classifier = tiny_classifier()
    v = masked(classifier)
    subsets = random_subsets(2, 3)
    before = v.logits(images(2), subsets)
    v(images(2), subsets).sum().backward()
    torch.optim.SGD(v.parameters(), lr=0.1).step()
    after = v.logits(images(2), subsets)
    assert (before - after).abs().max() > 1e-2
    torch.testing.assert_close(after, masked(classifier).logits(images(2), subsets))


def snapshot(classifier):
    modules = dict(classifier.named_modules())
    hooks = {n: (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for n, m in modules.items()}
    return {n: id(m) for n, m in modules.items()}, hooks, {n: p.requires_grad for n, p in classifier.named_parameters()}


@pytest.mark.parametrize(("family", "masking"), FAMILY_AND_MASKING)
def test_the_classifier_is_left_as_found(tiny_classifier, images, family, masking):
    classifier = tiny_classifier(family)
    with torch.no_grad():
        logits = classifier(images(2)).logits
    state, before = copy.deepcopy(classifier.state_dict()), snapshot(classifier)
    v = masked(classifier.train(), masking)
    assert not any(module.training for module in classifier.modules())  # eval mode, as documented
    v.logits(images(2), random_subsets(2, 3))
    with pytest.raises(ValueError, match="patches"):
        v.logits(images(2), random_subsets(2, 3, N + 1))
    assert snapshot(classifier) == before
    assert list(classifier.state_dict()) == list(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in classifier.state_dict().items())
    with torch.no_grad():
        assert torch.equal(classifier(images(2)).logits, logits)


def test_a_wrapped_classifier_saves_as_before(tiny_classifier, images, tmp_path):
    classifier = tiny_classifier()
    masked(classifier).logits(images(1), random_subsets(1, 2))
    classifier.save_pretrained(tmp_path)
    again = AutoModelForImageClassification.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(images(2)).logits, classifier(images(2)).logits)


@pytest.mark.parametrize("masking", ["drop", "mask_token", "zero"])
def test_the_state_dict_holds_the_classifier_once(tiny_classifier, masking):
    classifier = tiny_classifier()
    v = masked(classifier, masking)
    assert list(v.state_dict()) == [f"classifier.{name}" for name in classifier.state_dict()]
    assert len(list(v.parameters())) == len(list(classifier.parameters()))


@pytest.mark.parametrize("masking", ["drop", "mask_token"])
def test_conversions_and_copies_reach_the_whole_model(tiny_classifier, images, masking):
    v = masked(tiny_classifier(), masking)
    subsets = random_subsets(1, 3)
    subsets[0, 0] = False
    expected = v.logits(images(1), subsets)
    twin = copy.deepcopy(v)
    nn.init.zeros_(v.classifier.classifier.weight)
    assert torch.equal(twin.logits(images(1), subsets), expected)
    double = twin.double().logits(images(1).double(), subsets)
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), expected, rtol=0, atol=1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# Loading, and arguments


@pytest.mark.parametrize("num_labels", [1, 3])
def test_probabilities_are_softmax_or_sigmoid(tiny_classifier, images, num_labels):
    v = masked(tiny_classifier(num_labels=num_labels))
    subsets = random_subsets(2, 3)
    exponentials = v.logits(images(2), subsets).double().exp()
    total = 1 + exponentials if num_labels == 1 else exponentials.sum(-1, keepdim=True)
    torch.testing.assert_close(v.probabilities(images(2), subsets).double(), exponentials / total, rtol=1e-5, atol=1e-6)


def test_half_precision_checkpoints_load_in_float32(tiny_classifier, save_processor, images, tmp_path):
    classifier = tiny_classifier()
    classifier.half().save_pretrained(tmp_path)
    save_processor(tmp_path, 24)
    v = MaskedClassifier.from_pretrained(str(tmp_path))
    assert {p.dtype for p in v.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in v.parameters())
    assert (v.masking, v.patch_size, v.grid_size, v.num_patches, v.num_labels) == ("drop", 4, (6, 6), 36, 3)
    assert v.logits(images(1, 24), random_subsets(1, 2, 36)).dtype == torch.float32
    half = MaskedClassifier.from_pretrained(str(tmp_path), dtype=torch.float16, masking="zero", image_size=(8, 8))
    assert next(half.parameters()).dtype == torch.float16
    assert (half.masking, half.num_patches) == ("zero", 4)


def test_an_unknown_image_size_is_an_error(tiny_classifier):
    v = MaskedClassifier(tiny_classifier("resnet"), patch_size=4)
    with pytest.raises(ValueError, match="image_size is unknown"):
        _ = v.num_patches


@pytest.mark.parametrize(
    ("family", "masking"), [("dinov2", "drop"), ("vit", "drop"), ("resnet", "zero"), ("swin", "zero")]
)
def test_default_masking(tiny_classifier, family, masking):
    assert masked(tiny_classifier(family)).masking == masking


@pytest.mark.parametrize(
    ("family", "options", "masking", "patch_size", "has_tokens"),
    [
        ("dinov2", {}, "drop", 4, True),
        ("dinov2", {"patch_size": 4}, "drop", 4, True),
        ("vit", {"patch_size": 8}, "zero", 8, False),
        ("vit", {"masking": "mean"}, "mean", 4, True),
        ("beit", {}, "zero", 4, False),  # whose tokens cannot be dropped: its positions lie between all of them
        ("swin", {"patch_size": 4}, "zero", 4, False),
    ],
)
def test_masking_and_patches_are_chosen(tiny_classifier, caplog, family, options, masking, patch_size, has_tokens):
    with caplog.at_level("INFO", "salvage_hf"):
        v = MaskedClassifier(tiny_classifier(family), **options)
    assert (v.masking, v.patch_size, v.has_tokens) == (masking, patch_size, has_tokens)
    said = [record.message for record in caplog.records]
    if "masking" in options:
        assert said == []
    else:
        (line,) = said
        assert line.startswith(f"masking='{masking}': hidden patches of {patch_size} x {patch_size} pixels")


@pytest.mark.parametrize("size", [[16, 16], (16, 24)])
def test_vit_with_an_image_size_of_two_sides(tiny_classifier, images, size):
    classifier = tiny_classifier("vit", image_size=size)
    v = MaskedClassifier(classifier)
    pixel_values, full = images(1, *size), torch.ones(1, 1, size[0] * size[1] // 16, dtype=torch.bool)
    assert v.num_patches == full.shape[-1]
    with torch.no_grad():
        torch.testing.assert_close(
            v.logits(pixel_values, full)[:, 0], classifier(pixel_values).logits, rtol=0, atol=1e-5
        )


def test_models_without_a_head_are_refused():
    backbone = Dinov2Model(Dinov2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=2))
    with pytest.raises(ValueError, match="Dinov2Model, which has no classification head"):
        MaskedClassifier(backbone)


def test_models_that_are_no_image_classifiers_are_refused():
    from transformers import BertConfig, BertModel

    bert = BertModel(BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=10))
    with pytest.raises(ValueError, match="BertModel, which has no classification head"):
        MaskedClassifier(bert)


@pytest.mark.parametrize(
    ("family", "arguments", "message"),
    [
        ("resnet", {"masking": "drop", "patch_size": 4}, "needs one of dinov2.*resnet"),
        ("vit", {"masking": "mask_token"}, "needs a model with a mask_token .DINOv2., got a vit model"),
        ("resnet", {}, "patch_size is needed for a resnet"),
        ("dinov2", {"masking": "noise"}, "masking must be one of .* got 'noise'"),
        ("dinov2", {"masking": "drop", "patch_size": 8}, "patch_size=8 differs from the model's own 4"),
        ("resnet", {"patch_size": 0}, "patch_size must be a whole number of at least 1, got 0"),
    ],
)
def test_wrong_arguments(tiny_classifier, family, arguments, message):
    with pytest.raises(ValueError, match=message):
        MaskedClassifier(tiny_classifier(family), **arguments)


def test_mask_token_needs_a_mask_token(tiny_classifier):
    with pytest.raises(ValueError, match="mask_token"):
        MaskedClassifier(tiny_classifier("dinov2", use_mask_token=False), masking="mask_token")


def test_multi_label_classifiers_are_refused(tiny_classifier):
    with pytest.raises(ValueError, match=r"'multi_label_classification': each label .* needs one map per label"):
        MaskedClassifier(tiny_classifier("dinov2", problem_type="multi_label_classification"))


def test_classifiers_without_a_fixed_grid_are_refused():
    config = Siglip2Config(
        vision_config={"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1},
        text_config={"hidden_size": 8, "vocab_size": 8, "bos_token_id": 1, "eos_token_id": 2},
    )
    with pytest.raises(ValueError, match=r"siglip2 model \(NaFlex\), .* no fixed grid of patches"):
        MaskedClassifier(Siglip2ForImageClassification(config), patch_size=16)


def test_images_that_patches_do_not_divide_are_refused(tiny_classifier, images):
    v = masked(tiny_classifier())
    for height, width in ((18, 16), (16, 18)):
        with pytest.raises(ValueError, match=f"{height} x {width} pixels is not divided by patches of 4 x 4"):
            v.logits(images(1, height, width), random_subsets(1, 1))


@pytest.mark.parametrize(("height", "width"), [(24, 24), (24, 16), (8, 20)])
@pytest.mark.parametrize(("family", "masking"), [("vit", "drop"), ("deit", "drop"), ("vit", "zero"), ("beit", "zero")])
def test_fixed_positions_are_interpolated_for_other_image_sizes(
    tiny_classifier, images, family, masking, height, width
):
    classifier = tiny_classifier(family)
    v, pixel_values = masked(classifier, masking), images(2, height, width)
    subsets = random_subsets(2, 3, height * width // 16)
    subsets[:, 0] = True
    logits = v.logits(pixel_values, subsets)
    with torch.no_grad():
        expected = classifier(pixel_values, interpolate_pos_encoding=True).logits
    torch.testing.assert_close(logits[:, 0], expected, rtol=0, atol=1e-5)
    for m in (1, 2):
        if masking == "drop":
            literal = attention_masked_logits(
                classifier, pixel_values[0], subsets[0, m], NUM_PREFIX[family], interpolate_pos_encoding=True
            )
        else:
            shown = torch.from_numpy(literal_pixels(pixel_values[0].numpy(), subsets[0, m].numpy(), masking))
            with torch.no_grad():
                literal = classifier(shown[None], interpolate_pos_encoding=True).logits[0]
        torch.testing.assert_close(logits[0, m], literal, rtol=0, atol=1e-5)


@pytest.mark.parametrize("masking", ["drop", "mask_token", "zero"])
@pytest.mark.parametrize(
    ("subsets", "message"),
    [
        (torch.ones(2, 3, N + 1, dtype=torch.bool), "subsets have 17 patches, the images have 16"),
        (torch.ones(2, 3, N), "boolean"),
        (torch.ones(2, N, dtype=torch.bool), r"\[B, M, N\]"),
        (torch.ones(3, 3, N, dtype=torch.bool), "B = 2"),
    ],
)
def test_wrong_subsets_are_refused(tiny_classifier, images, masking, subsets, message):
    with pytest.raises(ValueError, match=message):
        masked(tiny_classifier(), masking).logits(images(2), subsets)


def test_pixel_values_without_a_batch_are_refused(tiny_classifier, images):
    with pytest.raises(ValueError, match=r"must be processed images, floating-point \[B, C, H, W\]"):
        masked(tiny_classifier()).embed(images(1)[0])


@pytest.mark.parametrize("masking", ["drop", "mean"])
def test_no_subsets_have_no_values(tiny_classifier, masking):
    v = masked(tiny_classifier("dinov2"), masking)
    assert v.logits(torch.zeros(2, 3, 16, 16), torch.zeros(2, 0, N, dtype=torch.bool)).shape == (2, 0, 3)


@pytest.mark.parametrize("masking", list(STRATEGIES))
def test_mixed_precision_applies_to_masked_forwards_alone(tiny_classifier, images, masking):
    classifier, pixels = tiny_classifier("dinov2_with_registers"), images(2)
    drawn = subsets.uniform(2, 5, 16, generator=torch.Generator().manual_seed(0))
    precise = MaskedClassifier(classifier, masking=masking)
    mixed = MaskedClassifier(classifier, masking=masking, mixed_precision="bf16")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = precise.logits_of(precise.embed(pixels), drawn)
    got = mixed.probabilities(pixels, drawn)
    assert got.dtype == torch.float32
    assert (got - precise.probabilities(pixels, drawn)).abs().max() > 0
    torch.testing.assert_close(got, expected.float().softmax(-1), atol=0.05, rtol=0)
    assert {weight.dtype for weight in classifier.parameters()} == {torch.float32}
    assert {buffer.dtype for buffer in classifier.buffers()} <= {torch.float32, torch.int64}
    with torch.no_grad():
        assert torch.equal(mixed.classifier(pixels).logits, precise.classifier(pixels).logits)


def number_of_hooks(classifier):
    return sum(len(module._forward_hooks) for module in classifier.modules())


@pytest.mark.parametrize("mixed_precision", ["no", "bf16"])
@pytest.mark.parametrize("family", [*DROP, "resnet"])
def test_a_classifier_that_returns_hidden_states_gathers_no_hooks(tiny_classifier, images, family, mixed_precision):
    """transformers puts hooks on the blocks to record them: not again for every forward of v(S)."""
    classifier = tiny_classifier(family)
    classifier.config.output_hidden_states = True
    with torch.no_grad():
        expected = classifier(images(1))
    v, hooks = masked(classifier, mixed_precision=mixed_precision), number_of_hooks(classifier)
    for _ in range(3):
        v.logits(images(2), random_subsets(2, 3))
    assert number_of_hooks(classifier) == hooks
    with torch.no_grad():
        assert len(classifier(images(1)).hidden_states) == len(expected.hidden_states)


def test_an_unknown_precision_is_refused(tiny_classifier):
    with pytest.raises(ValueError, match=r"mixed_precision must be one of no, fp16, bf16, fp8, got .half."):
        MaskedClassifier(tiny_classifier(), mixed_precision="half")


@pytest.mark.parametrize("masking", ["drop", "mask_token"])
def test_a_head_that_is_exchanged_is_the_one_that_answers(tiny_classifier, images, masking):
    v = masked(tiny_classifier(), masking)
    v.classifier.classifier = nn.Linear(64, 5)
    full = torch.ones(2, 1, N, dtype=torch.bool)
    with torch.no_grad():
        expected = v.classifier(images(2)).logits
    torch.testing.assert_close(v.logits(images(2), full)[:, 0], expected, rtol=0, atol=1e-5)


def test_no_module_is_hidden_from_torch(tiny_classifier):
    """Every module that v(S) uses is registered once, so that torch moves, saves and counts it."""
    v = masked(tiny_classifier())
    hidden = [name for name, value in vars(v).items() if isinstance(value, (nn.Module, list, tuple))]
    assert [name for name in hidden if name != "image_size"] == []
