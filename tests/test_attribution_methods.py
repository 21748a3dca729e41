import copy
import itertools

import pytest
import torch

from salvage_hf import MaskedClassifier, attribution_methods

FAMILIES = {"dinov2": 1, "dinov2_with_registers": 4, "vit": 1, "deit": 2}  # name -> tokens before the patches
METHODS = ["salvage", "last_attention", "attention_rollout", "rise", "random"]
N = 16


@pytest.fixture
def build(tiny_classifier, salvage_model):
    """A factory: build(method name, family) -> (method, its masked classifier)."""

    def make(name, family="dinov2_with_registers", seed=0):
        v = MaskedClassifier(tiny_classifier(family))
        options = {"salvage": {"explainer": salvage_model()}, "rise": {"num_masks": 40}}.get(name, {})
        return attribution_methods.load(name, classifier=v, seed=seed, **options), v

    return make


def slow_attentions(classifier, pixel_values):
    """Attention probabilities of every layer, [T, T] per head, from queries and keys of one image."""
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


@pytest.mark.parametrize("name", METHODS)
def test_images_of_another_size_have_their_own_grid(build, images, name):
    method, _ = build(name)
    assert method(images(1, 16, 24), torch.tensor([1])).shape == (1, 24)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", METHODS)
def test_the_classifier_is_left_as_it_was(tiny_classifier, salvage_model, images, name, training):
    classifier = tiny_classifier("dinov2_with_registers")
    v = MaskedClassifier(classifier)
    classifier.train(training)
    before = (classifier.config._attn_implementation, {n: p.clone() for n, p in classifier.state_dict().items()})
    options = {"explainer": salvage_model()} if name == "salvage" else {}
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
    """Its limit at N = 9: the mean of v(S) over all subsets that hold the patch."""
    v = MaskedClassifier(tiny_classifier("dinov2_with_registers"))
    pixel_values, targets = images(2, 12), torch.tensor([0, 2])
    subsets = torch.tensor(list(itertools.product([False, True], repeat=9)))
    predictions = v.probabilities(pixel_values, subsets.expand(2, -1, -1))  # [2, 512, K]
    exact = torch.zeros(2, 9)
    for image, target in enumerate(targets.tolist()):
        for patch in range(9):
            exact[image, patch] = predictions[image, subsets[:, patch], target].mean()
    errors = []
    for num_masks in (600, 9600):
        maps = attribution_methods.load("rise", classifier=v, num_masks=num_masks)(pixel_values, targets)
        errors.append((maps - exact).abs().max().item())
    assert errors[1] < 0.01 < exact.std(dim=1).min()
    assert errors[1] < errors[0]


def test_rise_asks_as_often_as_it_is_told(tiny_classifier, images, monkeypatch):
    v = MaskedClassifier(tiny_classifier())
    asked = []
    logits_of = v.logits_of
    monkeypatch.setattr(v, "logits_of", lambda tokens, drawn: asked.append(drawn.shape[1]) or logits_of(tokens, drawn))
    attribution_methods.load("rise", classifier=v, num_masks=700)(images(2), torch.tensor([0, 1]))
    assert sum(asked) == 700
    assert max(asked) == 512
    with pytest.raises(ValueError, match="num_masks must be at least 1, got 0"):
        attribution_methods.load("rise", classifier=v, num_masks=0)


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


def test_one_label_changes_sign_for_target_0(tiny_classifier, salvage_model, images):
    model, pixel_values = salvage_model(num_labels=1), images(2)
    v = MaskedClassifier(tiny_classifier(num_labels=1))
    maps = attribution_methods.load("salvage", classifier=v, explainer=model)(pixel_values, torch.tensor([1, 0]))
    with torch.no_grad():
        values = model(pixel_values).attributions[..., 0]
    torch.testing.assert_close(maps, torch.stack([values[0], -values[1]]))


def test_an_unknown_name_is_answered_with_the_known_ones(tiny_classifier):
    with pytest.raises(ValueError, match=r"no attribution method 'grad'; there are attention_rollout, .*salvage"):
        attribution_methods.load("grad", classifier=MaskedClassifier(tiny_classifier()))


@pytest.mark.parametrize("name", ["last_attention", "attention_rollout"])
def test_attention_needs_a_vision_transformer(tiny_classifier, name):
    v = MaskedClassifier(tiny_classifier("resnet"), patch_size=4)
    with pytest.raises(ValueError, match="a resnet model has no tokens"):
        attribution_methods.load(name, classifier=v)


def test_the_registry_describes_every_method():
    assert set(METHODS) <= set(attribution_methods.REGISTRY)
    for name, info in attribution_methods.REGISTRY.items():
        assert info.name == name
        assert info.title
        assert info.source
