"""Refined maps against a literal version, and against effects that are known by enumeration."""

import itertools
import math

import numpy as np
import pytest
import torch

from salvage_hf import MaskedClassifier, SalvageModel, attribution_methods, subsets
from salvage_hf.faithfulness import rank_scores
from salvage_hf.keyed_random import KeyedGenerator, image_keys
from salvage_hf.refinement import LEAST_BUDGET, Calibration, calibrate, measure_effects, refine
from salvage_hf.targets import activation, target_attributions, target_probability

CALIBRATION = {"correlation": 0.6, "signal": 0.02}


@pytest.fixture
def setting(tiny_classifier, salvage_model, images):
    """A classifier, an explainer, two images and their targets; 16 patches."""
    v = MaskedClassifier(tiny_classifier())
    return v, salvage_model(calibration=CALIBRATION), images(2), torch.tensor([0, 2])


def literal_refinement(v, explainer, pixel_values, targets, budget, correlation, signal):
    """Image by image and patch by patch, in numpy: (attributions, effects, standard errors)."""
    output = explainer(pixel_values)
    maps = target_attributions(output.attributions, targets).double().numpy()
    num_patches = maps.shape[1]
    sizes = subsets.stratified_sizes(
        1, budget, num_patches - 1, generator=KeyedGenerator("sizes of refinement", 0, keys=torch.zeros(1).long())
    )[0]
    drawn = subsets.uniform(
        len(targets),
        budget,
        num_patches,
        generator=KeyedGenerator("subsets of refinement", 0, keys=image_keys(pixel_values)),
        sizes=sizes,
    )
    generator = KeyedGenerator("subsets of the control variate", 0, keys=torch.zeros(1).long())
    control_sizes = subsets.stratified_sizes(1, max(4096, 4 * budget), num_patches - 1, generator=generator)[0]
    control = torch.cat(
        [subsets.uniform(1, 256, num_patches, generator=generator, sizes=part) for part in control_sizes.split(256)], 1
    )[0].numpy()

    def u(b, rows):
        logits = explainer.subset_logits(output, torch.from_numpy(rows)[None].expand(len(targets), -1, -1))
        return target_probability(activation(logits), targets)[b].double().numpy()

    def without_size(values, sizes):
        share = sizes.numpy() / num_patches
        functions = np.stack([share**0, share, share**2, share**0.5], axis=1)
        return values - functions @ np.linalg.lstsq(functions, values, rcond=None)[0]

    def effects_in(values, rows, sizes):
        """What each row says of each patch, added up, and the standard errors."""
        found, errors = [], []
        information = sum(s * (num_patches - s) for s in sizes.tolist()) / num_patches**2
        for patch in range(num_patches):
            said = [(row[patch] - row.sum() / num_patches) * value for row, value in zip(rows, values, strict=True)]
            found.append(sum(said) / information)
            errors.append(math.sqrt(sum(x * x for x in said)) / information)
        return np.array(found), np.array(errors), information

    results = []
    for b, target in enumerate(targets):
        rows = drawn[b].numpy()
        predictions = v.probabilities(pixel_values[b : b + 1], drawn[b : b + 1])[0, :, target].double().numpy()
        p, e = without_size(predictions, sizes), without_size(u(b, rows), sizes)
        slope = max(0.0, (p @ e) / (e @ e))
        residuals = p - slope * e
        measured, errors, information = effects_in(residuals, rows, sizes)
        in_u, errors_in_u, _ = effects_in(without_size(u(b, control), control_sizes), control, control_sizes)
        measured += slope * in_u
        residual = math.sqrt((residuals @ residuals) / (budget - 5))
        variance = errors**2 * budget / (budget - 5) + slope**2 * errors_in_u**2
        noise = 1 / information + slope**2 * (errors_in_u**2).mean() / residual**2
        unit = residual * math.sqrt(signal)
        prior = (maps[b] - maps[b].mean()) / maps[b].std()
        of_map, of_image = 1 / (1 - correlation**2), signal / noise
        effects = (of_map * correlation * prior + of_image * measured / unit) / (of_map + of_image)
        errors = np.sqrt(of_map**2 * (1 - correlation**2) + of_image**2 * variance / unit**2) / (of_map + of_image)
        order = sorted(range(num_patches), key=lambda patch: effects[patch])
        values = np.zeros(num_patches)
        for patch, value in zip(order, sorted(maps[b]), strict=True):
            values[patch] = value
        results.append((values, effects, errors))
    return [torch.tensor(np.array(part)).float() for part in zip(*results, strict=True)]


@pytest.mark.parametrize("budget", [16, 40, 300])
@pytest.mark.parametrize(("correlation", "signal"), [(0.6, 0.02), (0.0, 0.3), (0.95, 0.001)])
def test_refinement_equals_the_literal_version(setting, budget, correlation, signal):
    v, explainer, pixel_values, targets = setting
    explainer.config.calibration = {"correlation": correlation, "signal": signal}
    refined = refine(v, explainer, pixel_values, targets, budget)
    with torch.no_grad():
        literal = literal_refinement(v, explainer, pixel_values, targets, budget, correlation, signal)
    for part, expected in zip((refined.attributions, refined.effects, refined.stderr), literal, strict=True):
        torch.testing.assert_close(part, expected, rtol=1e-3, atol=1e-4)


def test_without_subsets_the_map_is_the_explainers(setting):
    v, explainer, pixel_values, targets = setting
    refined = refine(v, explainer, pixel_values, targets, 0)
    maps = target_attributions(explainer(pixel_values).attributions, targets)
    torch.testing.assert_close(refined.attributions, maps.detach(), rtol=0, atol=0)
    torch.testing.assert_close(refined.stderr, torch.full_like(maps, math.sqrt(1 - 0.6**2)))


def exact_effects(v, pixel_values, target, num_patches):
    """The effects by enumeration: at each size the means with and without the patch, weighted by s (N - s)."""
    everything = torch.tensor(list(itertools.product([False, True], repeat=num_patches)))
    predictions = v.probabilities(pixel_values, everything[None])[0, :, target].double()
    sizes, effects = everything.sum(dim=1), torch.zeros(num_patches, dtype=torch.float64)
    for patch in range(num_patches):
        for size in range(1, num_patches):
            of_size, shown = sizes == size, everything[:, patch]
            difference = predictions[of_size & shown].mean() - predictions[of_size & ~shown].mean()
            effects[patch] += size * (num_patches - size) * difference
    return effects / sum(size * (num_patches - size) for size in range(1, num_patches))


@pytest.fixture
def measured(tiny_classifier, salvage_model, images):
    """A function (budget, seeds) -> measured effects [seeds, 3, 8], errors, and the exact effects [3, 8]."""
    v, explainer = MaskedClassifier(tiny_classifier()), salvage_model()
    pixel_values, targets = images(3, 8, 16), torch.tensor([0, 1, 2])

    def measure(budget, seeds):
        with torch.no_grad():
            output = explainer(pixel_values)
            inputs = v, explainer, output, pixel_values, targets, budget
            found = [measure_effects(*inputs, seed) for seed in range(seeds)]
        exact = torch.stack([exact_effects(v, pixel_values[b : b + 1], int(targets[b]), 8) for b in range(3)])
        return torch.stack([m.effects for m in found]), torch.stack([m.stderr for m in found]), exact

    return measure


def test_with_many_subsets_the_effects_are_those_of_enumeration(measured):
    effects, stderr, exact = measured(20_000, 1)
    exact = exact - exact.mean(dim=1, keepdim=True)
    assert stderr.max() < 0.05 * exact.std()
    assert ((effects[0] - exact).abs() < 4.5 * stderr[0]).all()


def test_measured_effects_scatter_around_the_exact_ones_as_their_errors_say(measured):
    effects, stderr, exact = measured(64, 60)
    deviations = (effects - (exact - exact.mean(dim=1, keepdim=True))) / stderr
    assert deviations.mean(dim=0).abs().max() < 4.5 * deviations.std() / 60**0.5
    assert 0.85 < deviations.std() < 1.25


def test_neither_the_batch_nor_the_chunk_changes_a_refined_map(tiny_classifier, setting):
    v, explainer, pixel_values, targets = setting
    together = refine(v, explainer, pixel_values, targets, 300)
    for chunk_size in (None, 50):
        small = MaskedClassifier(v.classifier, chunk_size=chunk_size)
        for b in range(2):
            alone = refine(small, explainer, pixel_values[b : b + 1], targets[b : b + 1], 300)
            torch.testing.assert_close(alone.effects[0], together.effects[b], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(alone.attributions[0], together.attributions[b])
    other = refine(v, explainer, pixel_values, targets, 300, seed=1)
    assert not torch.allclose(other.effects, together.effects, atol=1e-3)


def test_an_image_given_for_several_classes_is_asked_about_once(setting, monkeypatch):
    v, explainer, pixel_values, _ = setting
    pixel_values, targets = pixel_values[[0, 1, 0, 0]], torch.tensor([2, 1, 0, 1])
    asked, logits_of = [], MaskedClassifier.logits_of
    monkeypatch.setattr(
        MaskedClassifier, "logits_of", lambda v, *inputs: asked.append(inputs[1]) or logits_of(v, *inputs)
    )
    together = refine(v, explainer, pixel_values, targets, 32)
    assert [tuple(subsets.shape) for subsets in asked] == [(2, 32, 16)]
    for place in range(4):
        alone = refine(v, explainer, pixel_values[place : place + 1], targets[place : place + 1], 32)
        torch.testing.assert_close(together.effects[place], alone.effects[0], rtol=1e-4, atol=1e-5)


def test_a_prediction_that_never_changes_leaves_the_explainers_order(setting):
    v, explainer, pixel_values, targets = setting
    torch.nn.init.zeros_(v.classifier.classifier.weight)
    refined = refine(v, explainer, pixel_values, targets, 64)
    assert refined.effects.isfinite().all()
    maps = target_attributions(explainer(pixel_values).attributions, targets)
    torch.testing.assert_close(refined.attributions, maps.detach())


def test_an_explainer_without_differences_leaves_the_order_to_the_image(setting):
    """A new explainer's map is constant, and so is its u(S) at each size."""
    v, _, pixel_values, targets = setting
    new = SalvageModel.from_classifier(v.classifier, calibration=CALIBRATION).eval()
    refined = refine(v, new, pixel_values, targets, 64)
    assert refined.effects.isfinite().all()
    assert (refined.effects.std(dim=1) > 0.1).all()


def test_one_patch_is_left_as_it_is(setting, images):
    v, explainer, _, targets = setting
    refined = refine(v, explainer, images(2, 4), targets, 64)
    maps = target_attributions(explainer(images(2, 4)).attributions, targets)
    torch.testing.assert_close(refined.attributions, maps.detach())


# Calibration


def made_up_game(num_images, num_patches, correlation, noise, seed=0):
    """Effects t, maps that have this correlation with them, and a v whose target probability is additive plus noise."""
    generator = torch.Generator().manual_seed(seed)
    effects, other = torch.randn(2, num_images, num_patches, generator=generator).double()
    maps = correlation * effects + math.sqrt(1 - correlation**2) * other
    return effects, maps, generator, noise


class MadeUpExplainer(torch.nn.Module):
    """An explainer whose maps are given, and whose u(S) says nothing."""

    def __init__(self, maps):
        super().__init__()
        self.maps, self.dtype = maps, torch.float32

    config = type("Config", (), {"num_labels": 2})

    def forward(self, pixel_values):
        values = self.maps[pixel_values[:, 0, 0, 0].long()]
        return type("Output", (), {"attributions": torch.stack([values, -values], dim=-1)})()

    def subset_logits(self, output, drawn):
        return torch.zeros(*drawn.shape[:2], 2)


class MadeUpClassifier:
    """What calibration asks of a classifier beside its predictions, which the test makes up."""

    device, num_labels = torch.device("cpu"), 2

    def as_input(self, pixel_values):
        return pixel_values


@pytest.mark.parametrize("correlation", [0.3, 0.8])
def test_calibration_finds_the_correlation_and_the_signal(monkeypatch, correlation):
    """Maps with a known correlation to the effects of a game whose signal is known."""
    num_images, num_patches, noise = 200, 16, 0.1
    effects, maps, generator, _ = made_up_game(num_images, num_patches, correlation, noise)
    scale = 0.01

    def value_at(v, pixel_values):
        which = pixel_values[:, 0, 0, 0].long()

        def value(drawn):
            additive = 0.5 + scale * (drawn.double() @ effects[which][..., None])[..., 0]
            p = additive + noise * torch.randn(additive.shape, generator=generator).double()
            return torch.stack([p, 1 - p], dim=-1)

        return value

    monkeypatch.setattr("salvage_hf.refinement.value_at", value_at)
    numbers = torch.arange(num_images)
    batches = [
        {"pixel_values": part[:, None, None, None].float(), "labels": torch.zeros_like(part)}
        for part in numbers.split(64)
    ]
    found = calibrate(MadeUpClassifier(), MadeUpExplainer(maps), batches, budget=512)
    assert abs(found["correlation"] - correlation) < 0.05
    # The effects of all patches add to the variance of the predictions; an effect is N / (N - 1) of a patch's part.
    sizes = torch.arange(1, num_patches)
    residual = noise**2 + scale**2 * (sizes * (num_patches - sizes)).double().mean() / num_patches
    expected = scale**2 * num_patches / (num_patches - 1) / residual.item()
    assert found["signal"] == pytest.approx(expected, rel=0.15)
    assert (found["images"], found["budget"]) == (200, 512)


def test_calibration_of_maps_that_say_nothing_is_zero_and_never_breaks(setting):
    v, _, pixel_values, targets = setting
    new = SalvageModel.from_classifier(v.classifier).eval()
    batch = {"pixel_values": pixel_values, "labels": targets}
    found = calibrate(v, new, [batch], budget=64)
    assert found["correlation"] == 0
    new.config.calibration = found
    type(new.config)(**new.config.to_dict())  # what it found is what a config takes
    assert refine(v, new, pixel_values, targets, 32).effects.isfinite().all()


# Arguments


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda batch: [], "batches must hold at least one image"),
        (lambda batch: [{**batch, "pixel_values": batch["pixel_values"][..., :4, :4]}], "at least 2 patches .* got 1"),
        (lambda batch: [{**batch, "labels": torch.tensor([0, 7])}], "targets contain 7"),
        (lambda batch: [{**batch, "pixel_values": batch["pixel_values"][0]}], "pixel_values must"),
    ],
)
def test_images_that_calibrate_nothing_are_refused(setting, change, message):
    v, explainer, pixel_values, targets = setting
    with pytest.raises(ValueError, match=message):
        calibrate(v, explainer, change({"pixel_values": pixel_values, "labels": targets}))


def test_an_explainer_of_other_labels_is_refused(setting, salvage_model):
    v, _, pixel_values, targets = setting
    with pytest.raises(ValueError, match="explainer has 2 labels, the classifier 3"):
        refine(v, salvage_model(num_labels=2, calibration=CALIBRATION), pixel_values, targets, 16)


def test_the_explainer_sees_images_as_they_are_given(setting):
    """A classifier in bfloat16 would round them."""
    v, explainer, pixel_values, targets = setting
    maps = target_attributions(explainer(pixel_values).attributions, targets)
    refined = refine(MaskedClassifier(v.classifier.bfloat16()), explainer, pixel_values, targets, 0)
    torch.testing.assert_close(refined.attributions, maps.detach(), rtol=0, atol=0)


@pytest.mark.parametrize("budget", [-1, 1, LEAST_BUDGET - 1, 1.5, True, "16", None])
def test_wrong_budgets_are_refused(setting, budget):
    with pytest.raises(ValueError, match="budget must be"):
        refine(*setting, budget)


def test_an_explainer_without_a_calibration_is_refused(setting):
    v, explainer, *_ = setting
    explainer.config.calibration = None
    with pytest.raises(ValueError, match=r"states no calibration.*scripts/calibrate.py"):
        attribution_methods.load("salvage_refined", v, explainer=explainer)


@pytest.mark.parametrize(
    "calibration",
    [{}, {"correlation": 0.5}, {"correlation": 1.0, "signal": 1.0}, {"correlation": 0.5, "signal": 0}, [0.5, 1.0], 3],
)
def test_configs_refuse_calibrations_that_cannot_be(salvage_model, calibration):
    with pytest.raises(ValueError, match="calibration must"):
        salvage_model(calibration=calibration)


def test_a_calibration_is_saved_with_the_explainer(salvage_model, tmp_path):
    explainer = salvage_model(calibration={**CALIBRATION, "images": 32, "budget": 256})
    explainer.save_pretrained(tmp_path)
    assert Calibration.of(SalvageModel.from_pretrained(tmp_path)) == Calibration(0.6, 0.02)


def test_the_method_is_the_refinement(setting):
    v, explainer, pixel_values, targets = setting
    method = attribution_methods.load("salvage_refined", v, explainer=explainer, budget=32, seed=3)
    expected = refine(v, explainer, pixel_values, targets, 32, seed=3).attributions
    torch.testing.assert_close(method(pixel_values, targets), expected)


def test_refinement_ranks_the_real_classifiers_patches_better(imagenette_classifier, imagenette_images):
    """A new explainer that knows nothing becomes one that ranks patches, by 128 subsets."""
    v = MaskedClassifier.from_pretrained(imagenette_classifier)
    pixel_values, targets = imagenette_images[0][:3], imagenette_images[1][:3]
    torch.manual_seed(0)
    explainer = SalvageModel.from_classifier(v.classifier, calibration={"correlation": 0.0, "signal": 0.02}).eval()
    torch.nn.init.normal_(explainer.head.class_projection.weight, std=1e-3)
    before = rank_scores(v, pixel_values, refine(v, explainer, pixel_values, targets, 0).attributions, targets).srg
    after = rank_scores(v, pixel_values, refine(v, explainer, pixel_values, targets, 128).attributions, targets).srg
    assert (after - before).mean() > 0.1
