"""Class activation mapping of models that are no ViT: which layer is read, and its maps against literal versions."""

import copy

import pytest
import torch
from torch import nn

from salvage_hf import MaskedClassifier, attribution_methods
from salvage_hf.attribution_methods.feature_maps import model_with_feature_grid, on_patches

#: family -> the layer that gives the feature maps, by hand: the last one before its pooling.
LAYERS = {
    "resnet": lambda model: model.resnet.encoder.stages[-1],
    "convnext": lambda model: model.convnext.encoder.stages[-1],
    "efficientnet": lambda model: model.efficientnet.encoder.top_activation,
    "mobilenet_v2": lambda model: model.mobilenet_v2.conv_1x1,
    "mobilevit": lambda model: model.mobilevit.conv_1x1_exp,
    "swin": lambda model: model.swin.layernorm,
    "siglip": lambda model: model.vision_model.post_layernorm,
}
#: family -> pixels along the side of a place of these maps.
STRIDES = {
    "resnet": 8,
    "convnext": 4,
    "efficientnet": 4,
    "mobilenet_v2": 8,
    "mobilevit": 8,
    "swin": 4,
    "siglip": 4,
}
METHODS = ["gradcam", "gradcam_plus_plus", "eigencam", "ablationcam"]


@pytest.fixture
def build(tiny_classifier):
    """A factory: build(family, patch_size) -> its masked classifier for images of 16 px."""

    def make(family, patch_size=4, **config):
        return MaskedClassifier(tiny_classifier(family, **config), patch_size=patch_size, image_size=16)

    return make


# The literal versions


def maps_and_logits(model, family, pixel_values):
    """Of one image: features [D, rows, columns] as the layer gave them, the layer's output and the logits [K]."""
    seen = []
    handle = LAYERS[family](model).register_forward_hook(lambda module, inputs, output: seen.append(output))
    options = {"interpolate_pos_encoding": True} if family == "siglip" else {}
    logits = model(pixel_values, **options).logits[0]
    handle.remove()
    return in_rows(seen[0], family, pixel_values), seen[0], logits


def in_rows(output, family, pixel_values):
    """The features [D, rows, columns] in a layer's output, token by token where it gives tokens."""
    if output.ndim == 4:
        return output[0]
    rows, columns = (side // STRIDES[family] for side in pixel_values.shape[-2:])
    maps = torch.zeros(output.shape[2], rows, columns)
    for row in range(rows):
        for column in range(columns):
            maps[:, row, column] = output[0, row * columns + column]
    return maps


def slow_gradcam(model, family, pixel_values, target):
    features, output, logits = maps_and_logits(model, family, pixel_values)
    gradients = in_rows(torch.autograd.grad(logits[target], output)[0], family, pixel_values)
    total = torch.zeros(features.shape[1:])
    for channel, gradient in zip(features.detach(), gradients, strict=True):
        total += channel * gradient.sum() / gradient.numel()
    return total.clamp(min=0)


def slow_gradcam_plus_plus(model, family, pixel_values, target):
    """Chattopadhay et al., equations 19 and 21, for Y = exp(S), whose derivatives are written without exp(S)."""
    features, output, logits = maps_and_logits(model, family, pixel_values)
    gradients = in_rows(torch.autograd.grad(logits[target], output)[0], family, pixel_values).double()
    total = torch.zeros(features.shape[1:], dtype=torch.float64)
    for channel, gradient in zip(features.detach().double(), gradients, strict=True):
        weight = 0.0
        for g in gradient.flatten().tolist():
            denominator = 2 * g**2 + float(channel.sum()) * g**3
            weight += (g**2 / denominator if denominator else 0.0) * max(g, 0.0)
        total += weight * channel
    return total.clamp(min=0).float()


def slow_eigencam(model, family, pixel_values, target):
    features, _, _ = maps_and_logits(model, family, pixel_values)
    places = features.detach().flatten(1).T.double()
    direction = torch.linalg.eigh(places.T @ places).eigenvectors[:, -1]
    projected = places @ direction
    return (projected * projected.sum().sign()).view(features.shape[1:]).float()


def slow_ablationcam(model, family, pixel_values, target):
    features, _, logits = maps_and_logits(model, family, pixel_values)
    total = torch.zeros(features.shape[1:])
    for channel in range(len(features)):

        def ablate(module, inputs, output, channel=channel):
            output = output.clone()
            (output[:, channel] if output.ndim == 4 else output[:, :, channel]).zero_()
            return output

        handle = LAYERS[family](model).register_forward_hook(ablate)
        _, _, without = maps_and_logits(model, family, pixel_values)
        handle.remove()
        total += features[channel].detach() * float((logits[target] - without[target]).detach())
    return total.clamp(min=0)


def slow_on_patches(places, rows, columns):
    """Each patch the mean of the places, which weigh less with their distance along each side, down to 0."""

    def weights(number, wanted):
        size = number / wanted  # of a patch, in places
        table = torch.zeros(wanted, number)
        for patch in range(wanted):
            for place in range(number):
                distance = abs((place + 0.5) - (patch + 0.5) * size)
                table[patch, place] = max(0.0, 1 - distance / max(size, 1))
            table[patch] /= table[patch].sum()
        return table

    return weights(places.shape[0], rows) @ places @ weights(places.shape[1], columns).T


# Which layer


@pytest.mark.parametrize("family", LAYERS)
def test_the_last_layer_with_places_is_read(build, images, family):
    v = build(family)
    _, grid = model_with_feature_grid(v, images(2))
    assert grid.layer is LAYERS[family](v.classifier)


def test_a_layer_is_not_taken_for_the_last_one_because_it_is_done_last(build, images):
    """An image that is one place after the last stage: within that stage a shortcut goes around the other layers."""
    v = build("resnet", hidden_sizes=[8, 8, 16], depths=[1, 1, 1])
    _, grid = model_with_feature_grid(v, images(1))
    assert grid.layer is v.classifier.resnet.encoder.stages[1]  # 2 x 2 places; the last stage has one


# The maps


#: Every method on every family, but for one of which the literal version takes long, and GradCAM on more grids.
CASES = [(name, family, 2, 16, 24) for name in METHODS for family in LAYERS]
CASES.remove(("ablationcam", "mobilenet_v2", 2, 16, 24))
CASES += [("gradcam", family, *case) for family in LAYERS for case in ((4, 16, 16), (8, 32, 16))]


@pytest.mark.parametrize(("name", "family", "patch_size", "height", "width"), CASES)
def test_maps_equal_their_slow_twin(build, images, name, family, patch_size, height, width):
    v, pixel_values, targets = build(family, patch_size), images(2, height, width), torch.tensor([0, 2])
    maps = attribution_methods.load(name, classifier=v)(pixel_values, targets)
    slow, model = globals()[f"slow_{name}"], copy.deepcopy(v.classifier)
    assert maps.shape == (2, (height // patch_size) * (width // patch_size))
    for index, target in enumerate(targets.tolist()):
        places = slow(model, family, pixel_values[index : index + 1], target)
        expected = slow_on_patches(places, height // patch_size, width // patch_size).flatten()
        torch.testing.assert_close(maps[index], expected, rtol=1e-3, atol=2e-3 * float(expected.abs().max()))
    assert maps.std(dim=1).max() > 0  # of one image, ReLU may leave nothing but zeros


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (4, 4), (7, 2), (16, 16)])
def test_maps_come_to_the_grid_of_patches(size):
    places = torch.randn(2, 4, 4)
    maps = on_patches(places, size)
    for index in range(2):
        expected = slow_on_patches(places[index], *size).flatten()
        torch.testing.assert_close(maps[index], expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(on_patches(torch.ones(1, 4, 4), size), torch.ones(1, size[0] * size[1]))
    assert torch.equal(on_patches(places, (4, 4)), places.flatten(1))


@pytest.mark.parametrize("patch_size", [2, 8])
@pytest.mark.parametrize("family", ["vit", "dinov2"])
def test_maps_of_vision_transformers_come_to_other_patches_too(build, images, family, patch_size):
    """v(S) may hide patches of another size than the model's own, by pixels."""
    own = attribution_methods.load("gradcam", classifier=build(family))(images(2), [0, 2])
    v = MaskedClassifier(build(family).classifier, masking="zero", patch_size=patch_size)
    maps = attribution_methods.load("gradcam", classifier=v)(images(2), [0, 2])
    for places, patches in zip(own, maps, strict=True):
        expected = slow_on_patches(places.view(4, 4), 16 // patch_size, 16 // patch_size).flatten()
        torch.testing.assert_close(patches, expected)


@pytest.mark.parametrize("family", ["resnet", "swin"])
@pytest.mark.parametrize("name", METHODS)
def test_batch_and_chunks_change_no_map(tiny_classifier, images, family, name):
    classifier, pixel_values, targets = tiny_classifier(family), images(3), torch.tensor([0, 2, 1])
    maps = []
    for chunk_size in (1, 37, 100_000):
        v = MaskedClassifier(classifier, patch_size=4, image_size=16, chunk_size=chunk_size)
        method = attribution_methods.load(name, classifier=v)
        maps.append(method(pixel_values, targets))
        maps.append(torch.cat([method(pixel_values[i : i + 1], targets[i : i + 1]) for i in range(3)]))
    for other in maps[1:]:
        torch.testing.assert_close(other, maps[0], rtol=1e-3, atol=1e-3 * float(maps[0].abs().max()))


def test_ablationcam_asks_only_what_follows_the_maps(build, images):
    """The layers before the maps see the batch once, and then one image for every part of the rows."""
    v, seen = build("resnet"), []
    v._chunk_size = 4 * 10  # 10 versions of maps with 4 places
    v.classifier.resnet.embedder.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    method = attribution_methods.load("ablationcam", classifier=v)
    seen.clear()
    method(images(3), torch.tensor([0, 2, 1]))
    assert sum(seen) == 1 + 1 + 3 + 5  # the layer is looked for, and tried; then 3 images, and 3 x 16 rows by tens


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", ["resnet", "swin"])
def test_the_classifier_is_left_as_it_was(build, images, family, name):
    v = build(family)
    before = {key: value.clone() for key, value in v.classifier.state_dict().items()}
    modules = list(v.classifier.modules())
    attribution_methods.load(name, classifier=v)(images(2), torch.tensor([0, 2]))
    assert all(torch.equal(before[key], value) for key, value in v.classifier.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in v.classifier.parameters())
    assert list(v.classifier.modules()) == modules
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules)


@pytest.mark.parametrize("name", METHODS)
def test_a_head_exchanged_after_loading_is_the_one_explained(build, images, name):
    v = build("convnext")
    method = attribution_methods.load(name, classifier=v)
    before = method(images(2), [0, 2])
    v.classifier.convnext.encoder = copy.deepcopy(build("convnext", seed=5).classifier.convnext.encoder)
    after = method(images(2), [0, 2])
    assert torch.equal(after, attribution_methods.load(name, classifier=v)(images(2), [0, 2]))
    assert not torch.allclose(before, after)


@pytest.mark.parametrize("name", METHODS)
def test_half_precision_classifiers_are_explained_in_float32(build, images, name):
    half = build("convnext")
    half.classifier.to(torch.bfloat16)
    rounded = build("convnext")
    rounded.classifier.to(torch.bfloat16).float()
    maps = attribution_methods.load(name, classifier=half)(images(2).bfloat16(), [0, 2])
    expected = attribution_methods.load(name, classifier=rounded)(images(2).bfloat16().float(), [0, 2])
    torch.testing.assert_close(maps, expected, rtol=0, atol=0)
    assert half.classifier.dtype == torch.bfloat16


def test_frozen_classifiers_and_inference_mode_change_nothing(build, images):
    v = build("resnet")
    expected = attribution_methods.load("gradcam", classifier=v)(images(2), [0, 2])
    v.classifier.requires_grad_(False)
    with torch.inference_mode():
        maps = attribution_methods.load("gradcam", classifier=v)(images(2), [0, 2])
    assert torch.equal(maps, expected)


def test_one_label_is_explained_in_both_directions(build, images):
    v = build("convnext", num_labels=1)
    method = attribution_methods.load("gradcam", classifier=v)
    present, absent = method(images(2), [1, 1]), method(images(2), [0, 0])
    places = [slow_gradcam(v.classifier, "convnext", images(2)[i : i + 1], 0) for i in range(2)]
    torch.testing.assert_close(present, torch.stack([map_.flatten() for map_ in places]), rtol=1e-3, atol=1e-5)
    assert not torch.allclose(present, absent)


# Gradients of the pixels, of every family


@pytest.mark.parametrize("family", [*LAYERS, "beit"])
def test_saliency_of_every_family(build, images, family):
    v, pixel_values, targets = build(family), images(2), torch.tensor([0, 2])
    maps = attribution_methods.load("saliency", classifier=v)(pixel_values, targets)
    for index, target in enumerate(targets.tolist()):
        pixels = pixel_values[index : index + 1].clone().requires_grad_()
        v.classifier(pixels).logits[0, target].backward()
        largest = pixels.grad[0].abs().max(dim=0).values
        expected = [
            largest[row : row + 4, column : column + 4].sum() for row in range(0, 16, 4) for column in range(0, 16, 4)
        ]
        torch.testing.assert_close(maps[index], torch.stack(expected), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("family", ["convnext", "swin", "beit"])
def test_integrated_gradients_are_complete(build, images, family):
    v, pixel_values = build(family), images(2)
    maps = attribution_methods.load("integrated_gradients", classifier=v, num_steps=200)(pixel_values, [0, 2])
    with torch.no_grad():
        gained = (v.classifier(pixel_values).logits - v.classifier(0 * pixel_values).logits)[[0, 1], [0, 2]]
    torch.testing.assert_close(maps.sum(dim=1), gained, rtol=3e-2, atol=3e-3)


# What is refused


@pytest.mark.parametrize("name", METHODS)
def test_tokens_that_nobody_has_placed_are_refused_when_loading(build, name):
    with pytest.raises(ValueError, match=r"beit model give tokens, not maps, .* stated for swin, swinv2, siglip only"):
        attribution_methods.load(name, classifier=build("beit"))


def test_a_classifier_that_states_no_image_size_is_refused_at_its_first_image(build, images):
    v = build("beit")
    v.image_size = None
    method = attribution_methods.load("gradcam", classifier=v)
    with pytest.raises(ValueError, match="a beit model give tokens, not maps"):
        method(images(1), [0])


def test_an_image_seen_around_every_layer_is_refused(build, images):
    """Cutting any one way still leaves another."""

    class TwoWays(nn.Module):
        def __init__(self, encoder):
            super().__init__()
            self.left, self.right = encoder, copy.deepcopy(encoder)

        def forward(self, hidden_states, **kwargs):
            output = self.left(*hidden_states, **kwargs)
            output.last_hidden_state = output.last_hidden_state + self.right(*hidden_states, **kwargs)[0]
            return output

    class NoLayer(nn.Module):
        def forward(self, pixel_values):
            return (pixel_values,)

    v = build("resnet")
    v.classifier.resnet.embedder, v.classifier.resnet.encoder = NoLayer(), TwoWays(v.classifier.resnet.encoder)
    for way in (v.classifier.resnet.encoder.left, v.classifier.resnet.encoder.right):
        way.stages = nn.ModuleList([nn.Conv2d(3, 16, 4, 4)])
    with pytest.raises(ValueError, match="has no layer with a map of features through which all that it sees"):
        attribution_methods.load("gradcam", classifier=v)(images(1), [0])


def test_maps_with_channels_last_are_refused(build, images):
    class ChannelsLast(nn.Module):
        def forward(self, hidden_state):
            return hidden_state.permute(0, 2, 3, 1)

    class Pool(nn.Module):
        def forward(self, hidden_state):
            return hidden_state.mean(dim=(1, 2))[:, :, None, None]

    v = build("resnet")
    v.classifier.resnet.pooler = nn.Sequential(ChannelsLast(), Pool())
    with pytest.raises(
        ValueError, match=r"resnet.pooler.0 of this resnet model gives \[1, 2, 2, 16\] for an image of 16"
    ):
        attribution_methods.load("gradcam", classifier=v)(images(1), [0])
