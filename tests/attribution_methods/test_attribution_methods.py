import copy
import itertools

import networkx
import pytest
import torch
from method_options import CHEAP
from scipy.cluster.hierarchy import fcluster, linkage

from salvage_hf import MaskedClassifier, attribution_methods
from salvage_hf.attribution_methods.lrp import (
    Rules,
    _BeyondAttentionRules,
    _ConservativeRules,
    conservative_relevance,
    walk,
)
from salvage_hf.keyed_random import KeyedGenerator, image_keys
from salvage_hf.objectives import OBJECTIVES

FAMILIES = {"dinov2": 1, "dinov2_with_registers": 4, "vit": 1, "deit": 2}  # name -> tokens before the patches
METHODS = list(attribution_methods.REGISTRY)
N = 16


def options_of(name, salvage_model):
    """The options that a method needs besides its classifier."""
    options = CHEAP.get(name, {})
    if objective := attribution_methods.REGISTRY[name].objective:
        trained = {"objective": objective, "paired_values": OBJECTIVES[objective].paired_values}
        options = {**options, "explainer": salvage_model(**trained)}
    return options


@pytest.fixture
def build(tiny_classifier, salvage_model):
    """A factory: build(method name, family) -> (method, its masked classifier)."""

    def make(name, family="dinov2_with_registers", seed=0):
        v = MaskedClassifier(tiny_classifier(family))
        options = options_of(name, salvage_model)
        return attribution_methods.load(name, classifier=v, seed=seed, **options), v

    return make


def slow_attentions(classifier, pixel_values):
    """Attention probabilities of every layer, one [T, T] per head, from the queries and keys of one image."""
    layers, inputs = [], {}
    names = {"q": ("query", "q_proj"), "k": ("key", "k_proj")}
    found = {"q": [], "k": []}
    for name, module in classifier.named_modules():
        for role, endings in names.items():
            if name.endswith(endings):
                found[role].append(module)
                key = (role, len(found[role]))
                module.register_forward_hook(lambda _, args, output, key=key: inputs.update({key: output[0]}))
    with torch.no_grad():
        classifier(pixel_values)
    heads = classifier.config.num_attention_heads
    for layer in range(1, len(found["q"]) + 1):
        query, key = inputs["q", layer], inputs["k", layer]
        size = query.shape[-1] // heads
        maps = []
        for head in range(heads):
            columns = slice(head * size, (head + 1) * size)
            rows = []
            for token in range(len(query)):
                scores = [float(query[token, columns] @ other) / size**0.5 for other in key[:, columns]]
                rows.append(torch.tensor(scores).softmax(dim=0))
            maps.append(torch.stack(rows))
        layers.append(maps)
    assert len(layers) == classifier.config.num_hidden_layers
    return layers


def slow_last_attention(layers, num_prefix):
    length = len(layers[-1][0])
    return [sum(head[0, token] for head in layers[-1]) / len(layers[-1]) for token in range(num_prefix, length)]


def slow_rollout(layers, num_prefix):
    """Abnar & Zuidema: how much of CLS after the last layer comes from each token, over all paths."""
    length = len(layers[0][0])
    reached = [1.0 if token == 0 else 0.0 for token in range(length)]  # walked back from CLS
    for heads in reversed(layers):
        mixed = (sum(heads) / len(heads) + torch.eye(length)) / 2
        reached = [sum(reached[i] * float(mixed[i, j]) for i in range(length)) for j in range(length)]
    return reached[num_prefix:]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("name", "slow"), [("last_attention", slow_last_attention), ("attention_rollout", slow_rollout)]
)
def test_attention_maps_equal_their_slow_twin(build, images, family, name, slow):
    method, v = build(name, family)
    pixel_values = images(2)
    maps = method(pixel_values, torch.tensor([0, 1]))
    assert maps.shape == (2, N)
    for image in range(2):
        layers = slow_attentions(copy.deepcopy(v.classifier), pixel_values[image : image + 1])
        expected = torch.tensor([float(value) for value in slow(layers, FAMILIES[family])])
        torch.testing.assert_close(maps[image], expected, rtol=1e-4, atol=1e-6)
        assert expected.std() > 1e-4


@pytest.mark.parametrize("name", METHODS)
def test_a_batch_gives_the_maps_of_single_images(build, images, name):
    method, _ = build(name)
    pixel_values, targets = images(3), torch.tensor([0, 2, 1])
    together = method(pixel_values, targets)
    assert together.shape == (3, N)
    singly = torch.cat([method(pixel_values[i : i + 1], targets[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, singly, rtol=1e-4, atol=1e-5)
    assert not torch.equal(together[0], together[1])


@pytest.mark.parametrize("family", ["dinov2_with_registers", "vit", "deit"])
@pytest.mark.parametrize("name", METHODS)
def test_images_of_another_size_have_their_own_grid(build, images, name, family):
    method, _ = build(name, family)
    assert method(images(1, 16, 24), torch.tensor([1])).shape == (1, 24)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", METHODS)
def test_the_classifier_is_left_as_it_was(tiny_classifier, salvage_model, images, name, training):
    classifier = tiny_classifier("dinov2_with_registers")
    v = MaskedClassifier(classifier)
    classifier.train(training)
    before = (classifier.config._attn_implementation, {n: p.clone() for n, p in classifier.state_dict().items()})
    options = options_of(name, salvage_model)
    method = attribution_methods.load(name, classifier=v, **options)
    method(images(1), torch.tensor([0]))
    assert classifier.training is training
    assert classifier.config._attn_implementation == before[0] == "sdpa"
    assert all(torch.equal(before[1][n], p) for n, p in classifier.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in classifier.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in classifier.modules())


@pytest.mark.parametrize("name", METHODS)
def test_maps_carry_no_gradient(build, images, name):
    method, _ = build(name)
    assert not method(images(1).requires_grad_(), torch.tensor([0])).requires_grad


def test_rise_converges_to_the_conditional_means(tiny_classifier, images):
    """RISE's limit, computed exactly at N = 9: the mean of v(S) over all subsets that contain the patch."""
    v = MaskedClassifier(tiny_classifier("dinov2_with_registers"))
    pixel_values, targets = images(2, 12), torch.tensor([0, 2])
    subsets = torch.tensor(list(itertools.product([False, True], repeat=9)))
    predictions = v.probabilities(pixel_values, subsets.expand(2, -1, -1))  # [2, 512, K]
    exact = torch.zeros(2, 9)
    for image, target in enumerate(targets.tolist()):
        for patch in range(9):
            exact[image, patch] = predictions[image, subsets[:, patch], target].mean()
    errors = []
    for budget in (600, 9600):
        maps = attribution_methods.load("rise", classifier=v, budget=budget)(pixel_values, targets)
        errors.append((maps - exact).abs().max().item())
    assert errors[1] < 0.01 < exact.std(dim=1).min()
    assert errors[1] < errors[0]


def test_rise_asks_as_often_as_it_is_told(tiny_classifier, images, monkeypatch):
    v = MaskedClassifier(tiny_classifier())
    asked = []
    logits_of = v.logits_of
    monkeypatch.setattr(v, "logits_of", lambda tokens, drawn: asked.append(drawn.shape[1]) or logits_of(tokens, drawn))
    attribution_methods.load("rise", classifier=v, budget=700)(images(2), torch.tensor([0, 1]))
    assert sum(asked) == 700
    assert max(asked) == 512
    with pytest.raises(ValueError, match="budget must be at least 1, got 0"):
        attribution_methods.load("rise", classifier=v, budget=0)


def test_random_is_keyed_by_seed_and_image(build, images):
    pixel_values, targets = images(3), torch.zeros(3, dtype=torch.int64)
    maps = build("random")[0](pixel_values, targets)
    # order, batch and classifier change nothing; seed and image do
    again = build("random", "vit")[0](pixel_values[[2, 0]], targets[:2])
    assert torch.equal(again, maps[[2, 0]])
    assert not torch.equal(build("random", seed=1)[0](pixel_values, targets), maps)
    assert not torch.equal(maps[0], maps[1])
    assert ((maps > 0) & (maps < 1)).all()


def test_salvage_is_the_models_map_of_the_target(tiny_classifier, salvage_model, images, tmp_path):
    model, pixel_values, targets = salvage_model(), images(3), torch.tensor([2, 0, 1])
    with torch.no_grad():
        output = model(pixel_values)
    expected = torch.stack([output.attributions[i, :, target] for i, target in enumerate(targets)])
    model.save_pretrained(tmp_path)
    v = MaskedClassifier(tiny_classifier())
    for explainer in (model, tmp_path, str(tmp_path)):
        maps = attribution_methods.load("salvage", classifier=v, explainer=explainer)(pixel_values, targets)
        torch.testing.assert_close(maps, expected)


@pytest.mark.parametrize("num_labels", [1, 3])
@pytest.mark.parametrize("name", ["vit_shapley", "fastshap"])
def test_maps_of_shapleys_own_objectives(tiny_classifier, salvage_model, images, name, num_labels):
    """ViT-Shapley's maps are shifted to sum to v(N) - v(empty); FastSHAP's are the explainer's raw values."""
    model, pixel_values = salvage_model(num_labels, objective=name, paired_values=False), images(2)
    v, targets = MaskedClassifier(tiny_classifier(num_labels=num_labels)), torch.tensor([1, 0])
    maps = attribution_methods.load(name, classifier=v, explainer=model)(pixel_values, targets)
    with torch.no_grad():
        raw = model(pixel_values).attributions
    for image, target in enumerate(targets.tolist()):
        ends = v.probabilities(pixel_values[[image]], torch.tensor([[[False] * N, [True] * N]]))[0]
        label, sign = (target, 1) if num_labels > 1 else (0, 2 * target - 1)
        phi = raw[image, :, label]
        gap = ends[1, label] - ends[0, label] - phi.sum() if name == "vit_shapley" else 0
        expected = sign * (phi + gap / N)
        torch.testing.assert_close(maps[image], expected)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_explainer_of_another_objective_is_refused(tiny_classifier, salvage_model, name):
    v = MaskedClassifier(tiny_classifier())
    for other in set(OBJECTIVES) - {name}:
        explainer = salvage_model(objective=other, paired_values=OBJECTIVES[other].paired_values)
        with pytest.raises(ValueError, match=f"trained by the objective '{other}', the method needs one by '{name}'"):
            attribution_methods.load(name, classifier=v, explainer=explainer)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_explainer_that_does_not_state_its_objective_is_not_taken_for_another(tiny_classifier, salvage_model, name):
    """Configs without an objective say "salvage"; their single values give them away."""
    explainer = salvage_model(paired_values=False)
    with pytest.raises(ValueError, match=r"paired_values=False|trained by the objective 'salvage'"):
        attribution_methods.load(name, classifier=MaskedClassifier(tiny_classifier()), explainer=explainer)


def test_the_methods_that_take_a_budget_are_known(tiny_classifier):
    taking = [name for name, info in attribution_methods.REGISTRY.items() if info.takes_budget]
    assert sorted(taking) == ["kernelshap", "rise", "salvage_refined", "svarm"]


def test_one_label_changes_sign_for_target_0(tiny_classifier, salvage_model, images):
    model, pixel_values = salvage_model(num_labels=1), images(2)
    v = MaskedClassifier(tiny_classifier(num_labels=1))
    maps = attribution_methods.load("salvage", classifier=v, explainer=model)(pixel_values, torch.tensor([1, 0]))
    with torch.no_grad():
        values = model(pixel_values).attributions[..., 0]
    torch.testing.assert_close(maps, torch.stack([values[0], -values[1]]))


@pytest.mark.parametrize("name", METHODS)
def test_targets_are_one_class_per_image(build, images, name):
    method, _ = build(name)
    with pytest.raises(ValueError, match=r"targets must be whole numbers \[B\] with B = 2, got int64 \[1\]"):
        method(images(2), torch.tensor([0]))
    with pytest.raises(ValueError, match=r"targets contain 3; the classifier's labels are 0\.\.2"):
        method(images(2), torch.tensor([0, 3]))


@pytest.mark.parametrize("name", METHODS)
def test_patches_divide_the_images(build, images, name):
    method, _ = build(name)
    with pytest.raises(ValueError, match="an image of 18 x 16 pixels is not divided by patches of 4 x 4"):
        method(torch.nn.functional.pad(images(1), (0, 0, 0, 2)), torch.tensor([0]))


def test_gradcam_plus_plus_keeps_small_gradients_in_half_precision(tiny_classifier, images):
    """The squares and cubes of these gradients would be 0 in float16."""
    classifier = tiny_classifier("dinov2")
    classifier.classifier.weight.data *= 1e-3
    pixel_values, targets = images(3), torch.tensor([0, 1, 2])
    maps = {}
    for dtype in (torch.float32, torch.float16):
        v = MaskedClassifier(copy.deepcopy(classifier).to(dtype))
        maps[dtype] = attribution_methods.load("gradcam_plus_plus", classifier=v)(pixel_values.to(dtype), targets)
    expected = maps[torch.float32]
    assert expected.max() > 0
    torch.testing.assert_close(maps[torch.float16], expected, rtol=0.1, atol=0.05 * expected.max().item())


@pytest.mark.parametrize("name", ["lrp", "gradcam", "ablationcam", "last_attention", "rise"])
def test_maps_of_a_bfloat16_classifier_are_float32(tiny_classifier, images, name):
    v = MaskedClassifier(tiny_classifier("dinov2").to(torch.bfloat16))
    method = attribution_methods.load(name, classifier=v, **CHEAP.get(name, {}))
    maps = method(images(2).to(torch.bfloat16), torch.tensor([0, 2]))
    assert maps.dtype == torch.float32
    assert maps.isfinite().all()


@pytest.mark.parametrize("name", ["lrp", "last_attention", "vit_cx"])
def test_methods_on_tokens_need_the_models_own_patches(tiny_classifier, images, name):
    v = MaskedClassifier(tiny_classifier("vit"), masking="zero", patch_size=8)
    with pytest.raises(ValueError, match="tokens are patches of 4 pixels, got patch_size=8"):
        attribution_methods.load(name, classifier=v)(images(1), torch.tensor([0]))


def test_an_unknown_name_is_answered_with_the_known_ones(tiny_classifier):
    with pytest.raises(ValueError, match=r"name must be one of ablationcam, .*salvage.* got 'grad'"):
        attribution_methods.load("grad", classifier=MaskedClassifier(tiny_classifier()))


@pytest.mark.parametrize("name", ["last_attention", "attention_rollout"])
def test_attention_needs_a_vision_transformer(tiny_classifier, name):
    v = MaskedClassifier(tiny_classifier("resnet"), patch_size=4)
    with pytest.raises(
        ValueError, match=r"how the tokens of a resnet model pass its blocks, .* is not known; use one of dinov2, "
    ):
        attribution_methods.load(name, classifier=v)


def test_the_registry_describes_every_method():
    for name, info in attribution_methods.REGISTRY.items():
        assert info.name == name
        assert info.title
        assert info.source


# Gradients and feature maps


def features_and_logit(v, pixel_values, target):
    """For one image: the output of the last block's first norm, with its graph, and the target's logit."""
    base = v.classifier.base_model
    block = (base.layers if hasattr(base, "layers") else base.encoder.layer)[-1]
    norm, seen = getattr(block, "norm1", None) or block.layernorm_before, []
    handle = norm.register_forward_hook(lambda module, inputs, output: seen.append(output))
    logit = v.classifier(pixel_values).logits[0, target]
    handle.remove()
    return seen[0], logit


def slow_saliency(v, pixel_values, target, num_prefix):
    pixels = pixel_values.clone().requires_grad_()
    v.classifier(pixels).logits[0, target].backward()
    side = v.patch_size
    grid = pixels.grad[0].abs()
    return [
        sum(
            max(float(grid[channel, row * side + y, column * side + x]) for channel in range(3))
            for y in range(side)
            for x in range(side)
        )
        for row in range(pixels.shape[-2] // side)
        for column in range(pixels.shape[-1] // side)
    ]


def slow_gradcam(v, pixel_values, target, num_prefix):
    tokens, logit = features_and_logit(v, pixel_values, target)
    gradient = torch.autograd.grad(logit, tokens)[0][0, num_prefix:]
    tokens = tokens[0, num_prefix:].detach()
    weights = [float(gradient[:, channel].mean()) for channel in range(tokens.shape[1])]
    return [max(0.0, sum(w * float(f) for w, f in zip(weights, patch, strict=True))) for patch in tokens]


def slow_gradcam_plus_plus(v, pixel_values, target, num_prefix):
    """Chattopadhay et al., equations 19 and 21, for Y = exp(S), with its derivatives written out."""
    tokens, logit = features_and_logit(v, pixel_values, target)
    gradient = torch.autograd.grad(logit, tokens)[0][0, num_prefix:].double()
    tokens, score = tokens[0, num_prefix:].detach().double(), float(logit.detach().exp())
    first, second, third = score * gradient, score * gradient**2, score * gradient**3
    weights = []
    for channel in range(tokens.shape[1]):
        inner = tokens[:, channel].sum() * third[:, channel]  # in eq. 19 the sum is over the features alone
        alpha = second[:, channel] / (2 * second[:, channel] + inner)
        weights.append((alpha * first[:, channel].clamp(min=0)).sum() / score)
    return [max(0.0, float(sum(w * f for w, f in zip(weights, patch, strict=True)))) for patch in tokens]


def slow_eigencam(v, pixel_values, target, num_prefix):
    tokens, _ = features_and_logit(v, pixel_values, target)
    features = tokens[0, num_prefix:].detach().double()
    direction = torch.linalg.eigh(features.T @ features).eigenvectors[:, -1]
    projected = features @ direction
    return (projected * projected.sum().sign()).tolist()


def slow_ablationcam(v, pixel_values, target, num_prefix):
    tokens, logit = features_and_logit(v, pixel_values, target)
    base = v.classifier.base_model
    block = (base.layers if hasattr(base, "layers") else base.encoder.layer)[-1]
    norm = getattr(block, "norm1", None) or block.layernorm_before
    tokens, weights = tokens.detach(), []
    for channel in range(tokens.shape[-1]):

        def ablate(module, inputs, output, channel=channel):
            output = output.clone()
            output[:, num_prefix:, channel] = 0
            return output

        handle = norm.register_forward_hook(ablate)
        weights.append((logit - v.classifier(pixel_values).logits[0, target]).item())
        handle.remove()
    return [
        max(0.0, float(sum(w * f for w, f in zip(weights, patch, strict=True)))) for patch in tokens[0, num_prefix:]
    ]


def slow_vit_cx(v, pixel_values, target, num_prefix):
    """One mask after the other, with clusters by scipy's hierarchy."""
    tokens, _ = features_and_logit(v, pixel_values, target)
    image, (height, width) = pixel_values[0], pixel_values.shape[-2:]
    rows, columns = v.patch_grid(pixel_values)
    maps = tokens[0, num_prefix:].detach().T.reshape(1, -1, rows, columns)
    maps = torch.nn.functional.interpolate(maps, size=(height, width), mode="bilinear", antialias=True)[0].flatten(1)
    maps = torch.stack([(m - m.min()) / (m.max() - m.min()) for m in maps])
    distances = [
        max(0.0, 1 - float(maps[i] @ maps[j] / maps[i].norm() / maps[j].norm()))
        for i in range(len(maps))
        for j in range(i + 1, len(maps))
    ]
    labels = fcluster(linkage(distances, "complete"), 0.1, criterion="distance")
    merged = [sum(m for m, label in zip(maps, labels, strict=True) if label == cluster) for cluster in set(labels)]
    merged = [((m - m.min()) / (m.max() - m.min())).view(height, width) for m in merged]
    assert 1 < len(merged) < len(maps)

    def probability(x):
        return float(v.classifier(x[None]).logits.softmax(-1)[0, target])

    return merged, probability, image


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("name", "slow"),
    [
        ("saliency", slow_saliency),
        ("gradcam", slow_gradcam),
        ("gradcam_plus_plus", slow_gradcam_plus_plus),
        ("eigencam", slow_eigencam),
        ("ablationcam", slow_ablationcam),
    ],
)
def test_maps_equal_their_slow_twin(build, images, family, name, slow):
    method, v = build(name, family)
    pixel_values, targets = images(2), torch.tensor([0, 2])
    maps = method(pixel_values, targets)
    for image, target in enumerate(targets.tolist()):
        expected = slow(
            MaskedClassifier(copy.deepcopy(v.classifier)), pixel_values[image : image + 1], target, FAMILIES[family]
        )
        torch.testing.assert_close(maps[image], torch.tensor(expected), rtol=1e-3, atol=1e-5)
    assert maps.std(dim=1).max() > 0  # of one image, ReLU may leave nothing but zeros


def test_vit_cx_equals_its_slow_twin_with_the_same_noise_everywhere(build, images, monkeypatch):
    method, v = build("vit_cx")
    monkeypatch.setattr(KeyedGenerator, "uniform", lambda self, *shape: torch.full((1, *shape), 0.99))
    noise = 0.1 * torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(0.99))
    pixel_values, targets = images(2), torch.tensor([0, 2])
    maps = method(pixel_values, targets)
    for index, target in enumerate(targets.tolist()):
        masks, probability, image = slow_vit_cx(v, pixel_values[index : index + 1], target, 4)
        noises = [noise * (1 - mask) for mask in masks]
        impact = [
            probability(mask * image + noise) - probability(image + noise) + probability(image)
            for mask, noise in zip(masks, noises, strict=True)
        ]
        pixels = sum(s * mask for s, mask in zip(impact, masks, strict=True)) / sum(masks)
        expected = pixels.unfold(0, 4, 4).unfold(1, 4, 4).sum(dim=(2, 3)).flatten()
        torch.testing.assert_close(maps[index], expected, rtol=1e-3, atol=1e-4)


def test_the_noise_of_vit_cx_is_on_what_a_mask_hides(build, images, monkeypatch):
    method, v = build("vit_cx")
    seen = []
    v.classifier.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    pixel_values = images(1)
    method(pixel_values, torch.tensor([0]))
    masked, noisy = seen[-1].chunk(2)
    difference = noisy - masked  # x (1 - mask), without noise
    assert (difference / pixel_values).min() > -1e-4
    assert (difference / pixel_values).max() < 1 + 1e-4
    noise = noisy - pixel_values
    hidden = (difference / pixel_values).clamp(1e-3)
    assert 0.08 < (noise / hidden)[hidden > 0.5].std() < 0.12


@pytest.mark.parametrize("family", ["dinov2_with_registers", "vit"])
def test_integrated_gradients_are_complete(tiny_classifier, images, family):
    v = MaskedClassifier(tiny_classifier(family))
    pixel_values, targets = images(2), torch.tensor([0, 2])
    maps = attribution_methods.load("integrated_gradients", classifier=v, num_steps=200)(pixel_values, targets)
    with torch.no_grad():
        logits, base = (v.classifier(x).logits for x in (pixel_values, torch.zeros_like(pixel_values)))
    gained = (logits - base)[[0, 1], targets]
    torch.testing.assert_close(maps.sum(dim=1), gained, rtol=1e-2, atol=1e-3)


def test_smoothgrad_is_the_mean_gradient_over_noise(tiny_classifier, images):
    v = MaskedClassifier(tiny_classifier("vit"))
    pixel_values, targets = images(2), torch.tensor([0, 2])
    still = attribution_methods.load("smoothgrad", classifier=v, num_samples=2, noise_level=0.0)(pixel_values, targets)
    torch.testing.assert_close(still, attribution_methods.load("saliency", classifier=v)(pixel_values, targets))
    method = attribution_methods.load("smoothgrad", classifier=v, num_samples=3, noise_level=0.2)
    generator = KeyedGenerator("noise of SmoothGrad", 0, keys=image_keys(pixel_values))
    gradients = 0
    for _ in range(3):
        u = generator.uniform(3, 16, 16)
        for image, span in enumerate((pixel_values.amax((1, 2, 3)) - pixel_values.amin((1, 2, 3))).tolist()):
            u[image] = pixel_values[image] + 0.2 * span * torch.distributions.Normal(0.0, 1.0).icdf(u[image])
        noisy = u.requires_grad_()
        gradients = gradients + torch.autograd.grad(v.classifier(noisy).logits[[0, 1], targets].sum(), noisy)[0] / 3
    expected = gradients.abs().amax(dim=1).unfold(1, 4, 4).unfold(2, 4, 4).sum(dim=(3, 4)).flatten(1)
    torch.testing.assert_close(method(pixel_values, targets), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["saliency", "integrated_gradients", "gradcam", "ablationcam", "lrp", "conservative_lrp"]
)
def test_one_label_is_explained_in_both_directions(tiny_classifier, images, name):
    v = MaskedClassifier(tiny_classifier(num_labels=1))
    pixel_values = images(1)
    method = attribution_methods.load(name, classifier=v)
    present, absent = (method(pixel_values, torch.tensor([target])) for target in (1, 0))
    if name in ("integrated_gradients", "conservative_lrp"):
        torch.testing.assert_close(present, -absent)
    elif name == "saliency":
        torch.testing.assert_close(present, absent)
    else:
        assert not torch.allclose(present, absent)


# Attention flow


def test_attention_flow_is_a_maximum_flow(build, images):
    method, v = build("attention_flow")
    pixel_values = images(1)
    maps = method(pixel_values, torch.tensor([0]))
    layers = slow_attentions(copy.deepcopy(v.classifier), pixel_values)
    graph = networkx.DiGraph()
    for number, heads in enumerate(layers):
        mixed = (sum(heads) / len(heads) + torch.eye(len(heads[0]))) / 2
        for i, row in enumerate(mixed.tolist()):
            for j, capacity in enumerate(row):
                graph.add_edge((number + 1, i), (number, j), capacity=capacity)
    expected = [networkx.maximum_flow_value(graph, (len(layers), 0), (0, token)) for token in range(4, 20)]
    torch.testing.assert_close(maps[0], torch.tensor(expected), rtol=1e-4, atol=1e-5)
    assert maps.std() > 1e-3


# Relevance


@pytest.mark.parametrize("family", [*FAMILIES, "deit_teacher"])
@pytest.mark.parametrize("rules", [Rules, _BeyondAttentionRules, _ConservativeRules])
def test_a_walk_gives_the_classifiers_logits(tiny_classifier, images, family, rules):
    v = MaskedClassifier(tiny_classifier(family))
    with torch.no_grad():
        expected = v.classifier(images(2)).logits
        logits, attentions = walk(v, v.embed_tokens(images(2)), rules())
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert len(attentions) == v.config.num_hidden_layers


def test_a_walk_through_gated_layers(tiny_classifier, images):
    v = MaskedClassifier(tiny_classifier("dinov2", use_swiglu_ffn=True))
    for rules in (Rules, _BeyondAttentionRules, _ConservativeRules):
        with torch.no_grad():
            logits, _ = walk(v, v.embed_tokens(images(2)), rules())
            torch.testing.assert_close(logits, v.classifier(images(2)).logits, rtol=1e-4, atol=1e-4)


class SlowRelevance:
    """Chefer et al. (2021) for one image: backwards through the modules, by their equations."""

    def __init__(self, v, pixel_values, target):
        self.v, self.model, self.num_prefix = v, v.classifier.double(), v.num_prefix_tokens
        self.forward(pixel_values.double())
        self.maps = [None] * len(self.blocks)
        relevance = self.head(target)
        for number in reversed(range(len(self.blocks))):
            relevance = self.block(number, relevance)

    def forward(self, pixel_values):
        base = self.model.base_model
        self.blocks = base.layers if hasattr(base, "layers") else base.encoder.layer
        self.kept = {}
        for name, module in self.model.named_modules():
            module.register_forward_hook(lambda m, i, o, name=name: self.kept.update({m: (i[0] if i else None, o)}))
        with torch.no_grad():
            self.model(pixel_values)

    @staticmethod
    def divide(a, b):
        return a / (b + 1e-9 * b.sign()) * (b != 0)

    def linear(self, layer, relevance):
        x, weight = self.kept[layer][0][0], layer.weight
        result = torch.zeros_like(x)
        for token in range(len(x)):
            positive = (x[token][None, :] * weight).clamp(min=0)  # [out, in]
            result[token] = (positive * self.divide(relevance[token], positive.sum(dim=1))[:, None]).sum(dim=0)
        return result

    def add(self, a, b, relevance):
        parts = [x * self.divide(relevance, a + b) for x in (a, b)]
        size = sum(part.sum().abs() for part in parts)
        return [part * part.sum().abs() / size * relevance.sum() / part.sum() for part in parts]

    def head(self, target):
        final = self.kept[self.model.base_model.layernorm][1][0]
        weight, relevance = self.model.classifier.weight[target], torch.zeros_like(final)
        pooled = final[self.num_prefix :].mean(dim=0)
        inputs = torch.cat([final[0], pooled]) if len(weight) == 2 * len(pooled) else final[0]
        positive = (inputs * weight).clamp(min=0)
        positive = positive / positive.sum()
        relevance[0] = positive[: len(pooled)]
        if len(weight) == 2 * len(pooled):
            number = len(final) - self.num_prefix
            for token in range(self.num_prefix, len(final)):
                relevance[token] = final[token] / number * self.divide(positive[len(pooled) :], pooled)
        return relevance

    def block(self, number, relevance):
        block = self.blocks[number]
        dinov2 = hasattr(block, "norm1")
        attention, mlp = block.attention, block.mlp
        entered = self.kept[block][0][0]
        attended = self.kept[block.layer_scale1 if dinov2 else attention.o_proj][1][0]
        middle = entered + attended
        first, second = self.add(middle, self.kept[block.layer_scale2 if dinov2 else mlp][1][0], relevance)
        relevance = first + self.linear(mlp.fc1, self.linear(mlp.fc2, second))
        first, second = self.add(entered, attended, relevance)
        return first + self.attention(number, attention, self.linear(attention.o_proj, second))

    def attention(self, number, attention, relevance):
        heads = attention.num_attention_heads
        query, key, value = (
            self.kept[layer][1][0].unflatten(-1, (heads, -1))
            for layer in (attention.q_proj, attention.k_proj, attention.v_proj)
        )  # [T, heads, d]
        relevance = relevance.unflatten(-1, (heads, -1))
        of_query, of_key, of_value = (torch.zeros_like(query) for _ in range(3))
        maps = []
        for head in range(heads):
            q, k, x = query[:, head], key[:, head], value[:, head]
            scores = q @ k.T
            probabilities = (scores * attention.scaling).softmax(dim=-1)
            ratio = self.divide(relevance[:, head], probabilities @ x)
            of_map = probabilities * (ratio @ x.T) / 2
            of_value[:, head] = x * (probabilities.T @ ratio) / 2
            ratio = self.divide(of_map, scores)
            of_query[:, head], of_key[:, head] = q * (ratio @ k) / 2, k * (ratio.T @ q) / 2
            maps.append(of_map)
        self.maps[number] = torch.stack(maps)
        pairs = ((attention.q_proj, of_query), (attention.k_proj, of_key), (attention.v_proj, of_value))
        return sum(self.linear(layer, part.flatten(1)) for layer, part in pairs)


def attention_gradients(classifier, pixel_values, target):
    """The gradient of the target's logit with respect to each layer's attention, from transformers' own forward."""
    model = copy.deepcopy(classifier).float()
    model.set_attn_implementation("eager")
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    output = model(pixel_values, output_attentions=True)
    return [gradient[0] for gradient in torch.autograd.grad(output.logits[0, target], output.attentions)]


@pytest.mark.parametrize("family", FAMILIES)
def test_lrp_equals_its_slow_twin(build, images, family):
    method, v = build("lrp", family)
    pixel_values, targets = images(2), torch.tensor([0, 2])
    maps = method(pixel_values, targets)
    for image, target in enumerate(targets.tolist()):
        alone = pixel_values[image : image + 1]
        gradients = attention_gradients(v.classifier, alone, target)
        slow = SlowRelevance(MaskedClassifier(copy.deepcopy(v.classifier)), alone, target)
        rollout = identity = torch.eye(FAMILIES[family] + N).double()
        for gradient, relevance in zip(gradients, slow.maps, strict=True):
            rollout = (identity + (gradient * relevance).clamp(min=0).mean(dim=0)) @ rollout
        expected = rollout[0, FAMILIES[family] :]
        torch.testing.assert_close(maps[image].double(), expected, rtol=1e-3, atol=1e-6)
        assert maps[image].std() > 1e-5


@pytest.mark.parametrize("family", ["dinov2", "dinov2_with_registers", "vit", "deit"])
def test_conservative_relevance_sums_to_the_logit(tiny_classifier, images, family):
    """This holds without biases, and over every input token: CLS, registers and positions included."""
    classifier = tiny_classifier(family)
    with torch.no_grad():
        for name, parameter in classifier.named_parameters():
            if name.endswith("bias") and "embeddings" not in name:
                parameter.zero_()
    v = MaskedClassifier(classifier)
    pixel_values, targets = images(3), torch.tensor([0, 1, 2])
    relevance = conservative_relevance(v, pixel_values, targets)
    assert relevance.shape == (3, FAMILIES[family] + N)
    with torch.no_grad():
        logits = classifier(pixel_values).logits[[0, 1, 2], targets]
    torch.testing.assert_close(relevance.sum(dim=1), logits, rtol=1e-3, atol=1e-5)
    maps = attribution_methods.load("conservative_lrp", classifier=v)(pixel_values, targets)
    torch.testing.assert_close(maps, relevance[:, FAMILIES[family] :])
