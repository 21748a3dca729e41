"""Every metric against slow loops that are written from Algorithm 1, Algorithm 2 and Arras et al. (2022)."""

import inspect
import itertools
import json
import re

import evaluate
import numpy as np
import pytest
import torch

from salvage_hf import faithfulness
from salvage_hf.evaluate_modules import shared
from salvage_hf.evaluate_modules.registration import metric_scripts
from salvage_hf.evaluation.scores import SCORES
from salvage_hf.masking import MaskedClassifier

RANK = ["mif", "lif", "srg"]
RELATIVE = ["r_mif", "r_lif", "r_srg"]
REGION = ["rra", "rma"]


def lookup(pixel_values, subsets):
    """A classifier whose answer to every subset is written into the image: [B, K, 1, 2^N] -> [B, M, K]."""
    codes = (subsets.long() * 2 ** torch.arange(subsets.shape[-1])).sum(-1)  # [B, M]
    tables = pixel_values[:, :, 0]  # [B, K, 2^N]
    return tables.gather(2, codes[:, None].expand(-1, tables.shape[1], -1)).transpose(1, 2)


def game(batch_size, num_patches, seed=0, num_classes=3):
    """Images for `lookup`, maps without ties, and classes."""
    rng = np.random.default_rng(seed)
    tables = rng.random((batch_size, num_classes, 1, 2**num_patches))
    pixel_values = torch.from_numpy(tables / tables.sum(1, keepdims=True)).float()
    maps = rng.normal(size=(batch_size, num_patches)).astype(np.float32)
    return pixel_values, maps, rng.integers(num_classes, size=batch_size).tolist()


def algorithm_1(table, scores, descending):
    """Mean of v(S) as features are added in the order of their scores; `table` holds v, indexed by the bits of S."""
    subset, predictions = set(), []
    for feature in sorted(range(len(scores)), key=lambda i: scores[i], reverse=descending):
        subset.add(feature)
        predictions.append(table[sum(2**i for i in subset)])
    return sum(predictions) / len(scores)


def order_probability(order, weights):
    """The probability of drawing features in this order, in proportion to weight; zero weights come last, uniformly."""
    probability, left = 1.0, list(range(len(weights)))
    for feature in order:
        total = sum(weights[i] for i in left)
        probability *= weights[feature] / total if total > 0 else 1 / len(left)
        left.remove(feature)
    return probability


def algorithm_2(table, scores, relative_to_most):
    """Expectation and standard deviation of an order's score, over all orders."""
    scores = np.asarray(scores, dtype=np.float64)
    normalised = (scores - scores.min()) / (scores.max() - scores.min())
    weights = normalised if relative_to_most else 1 - normalised
    mean = square = 0.0
    for order in itertools.permutations(range(len(scores))):
        prefixes = [sum(2**i for i in order[: s + 1]) for s in range(len(order))]
        score = sum(table[code] for code in prefixes) / len(order)
        mean += order_probability(order, weights) * score
        square += order_probability(order, weights) * score**2
    return mean, (square - mean**2) ** 0.5


@pytest.mark.parametrize(("batch_size", "num_patches"), [(1, 1), (2, 4), (5, 6), (3, 12)])
def test_rank_metrics(load, batch_size, num_patches):
    pixel_values, maps, targets = game(batch_size, num_patches)
    tables = [pixel_values[b, k, 0].tolist() for b, k in enumerate(targets)]
    lif = np.array([algorithm_1(t, m, descending=True) for t, m in zip(tables, maps, strict=True)])
    mif = np.array([algorithm_1(t, m, descending=False) for t, m in zip(tables, maps, strict=True)])
    expected = {"lif": lif, "mif": mif, "srg": lif - mif}
    for name in RANK:
        results = load(name).compute(predictions=maps, references=targets, pixel_values=pixel_values, model=lookup)
        assert results["per_image"] == pytest.approx(expected[name], abs=1e-6)
        assert results[name] == pytest.approx(expected[name].mean(), abs=1e-6)
        if batch_size > 1:
            assert results["stderr"] == pytest.approx(expected[name].std(ddof=1) / batch_size**0.5, abs=1e-6)
        for other in set(RANK) - {name}:
            found = results[other] if name == "srg" else results["same_pass"][other]
            assert found == pytest.approx(expected[other].mean(), abs=1e-6)
        for term in ["mif", "lif"] if name == "srg" else [name]:
            assert np.mean(results[f"{term}_curve"]) == pytest.approx(expected[term].mean(), abs=1e-6)


@pytest.mark.parametrize(("batch_size", "num_patches"), [(1, 2), (3, 4), (2, 5)])
def test_relative_metrics(load, batch_size, num_patches):
    n_masks = 4000
    pixel_values, maps, targets = game(batch_size, num_patches, seed=1)
    tables = [pixel_values[b, k, 0].tolist() for b, k in enumerate(targets)]
    lif, lif_std = np.array([algorithm_2(t, m, True) for t, m in zip(tables, maps, strict=True)]).T
    mif, mif_std = np.array([algorithm_2(t, m, False) for t, m in zip(tables, maps, strict=True)]).T
    expected = {"r_lif": lif, "r_mif": mif, "r_srg": lif - mif}
    variance = {"r_lif": lif_std**2, "r_mif": mif_std**2, "r_srg": lif_std**2 + mif_std**2}
    for name in RELATIVE:
        results = load(name).compute(
            predictions=maps, references=targets, pixel_values=pixel_values, model=lookup, n_masks=n_masks
        )
        draw_stderr = np.sqrt(variance[name].sum() / n_masks) / batch_size
        assert results["draw_stderr"] == pytest.approx(draw_stderr, rel=0.1, abs=1e-6)
        assert results[name] == pytest.approx(expected[name].mean(), abs=4 * draw_stderr + 1e-6)
        for b, score in enumerate(results["per_image"]):
            assert score == pytest.approx(expected[name][b], abs=4 * np.sqrt(variance[name][b] / n_masks) + 1e-6)


@pytest.mark.parametrize("name", RELATIVE)
def test_relative_metrics_under_a_budget(load, name):
    pixel_values, maps, targets = game(4, 6, seed=1)
    inputs = {"predictions": maps, "references": targets, "pixel_values": pixel_values, "model": lookup}
    tables = [pixel_values[b, k, 0].tolist() for b, k in enumerate(targets)]
    lif, mif = (np.array([algorithm_2(t, m, most)[0] for t, m in zip(tables, maps, strict=True)]) for most in (1, 0))
    expected = {"r_lif": lif, "r_mif": mif, "r_srg": lif - mif}[name]
    results = load(name).compute(**inputs, budget=401)
    assert results["num_forwards"] == 4 * 401
    assert results[name] == pytest.approx(expected.mean(), abs=4 * results["draw_stderr"])
    surer = load(name).compute(**inputs, budget=401, target_stderr=results["draw_stderr"])
    assert surer["num_forwards"] > results["num_forwards"]
    assert surer["draw_stderr"] < results["draw_stderr"]
    assert surer[name] == pytest.approx(expected.mean(), abs=4 * surer["draw_stderr"])


def rank_accuracy(pixel_map, mask):
    k = mask.sum()
    pixels = sorted(np.ndindex(mask.shape), key=lambda p: pixel_map[p], reverse=True)[:k]
    return sum(bool(mask[p]) for p in pixels) / k if k else float("nan")


def mass_accuracy(pixel_map, mask):
    inside = total = 0.0
    for p in np.ndindex(mask.shape):
        total += max(pixel_map[p], 0)
        inside += max(pixel_map[p], 0) * mask[p]
    return inside / total if total > 0 and mask.any() else float("nan")


@pytest.mark.parametrize("shape", [(1, 3, 3), (4, 6, 5), (3, 12, 7)])
@pytest.mark.parametrize(("name", "oracle"), [("rra", rank_accuracy), ("rma", mass_accuracy)])
def test_region_metrics_on_pixel_maps(load, name, oracle, shape):
    rng = np.random.default_rng(2)
    maps, masks = rng.normal(size=shape).astype(np.float32), rng.random(shape) < 0.3
    masks[:, 0, 0] = True
    expected = [oracle(m, mask) for m, mask in zip(maps, masks, strict=True)]
    results = load(name).compute(predictions=maps, masks=masks)
    assert results["per_image"] == pytest.approx(expected, abs=1e-6)
    assert results[name] == pytest.approx(np.mean(expected), abs=1e-6)
    assert results["num_undefined"] == 0


@pytest.mark.parametrize("name", REGION)
def test_patch_maps_are_upsampled_to_masks_of_any_size(load, name):
    rng = np.random.default_rng(3)
    maps = torch.from_numpy(rng.normal(size=(2, 6)).astype(np.float32))
    masks = [rng.random((8, 6)) < 0.4, rng.random((4, 12)) < 0.4]

    def by_hand(patch_map, mask, mode):
        pixel_map = torch.nn.functional.interpolate(patch_map.view(1, 1, 2, 3), mask.shape, mode=mode)[0]
        return load(name).compute(predictions=pixel_map, masks=mask[None])[name]

    found = {}
    for mode in ("bilinear", "nearest"):
        results = load(name).compute(predictions=maps, masks=masks, grid_size=(2, 3), upsampling=mode)
        assert results["per_image"] == [by_hand(m, mask, mode) for m, mask in zip(maps, masks, strict=True)]
        found[mode] = results
    assert found["bilinear"] != found["nearest"]
    assert load(name).compute(predictions=maps, masks=masks, grid_size=(2, 3)) == found["bilinear"]


def test_undefined_images_are_counted_and_left_out(load):
    masks = torch.zeros(3, 2, 2, dtype=torch.bool)
    masks[:2, 0, 0] = True  # the third mask is empty
    maps = [[0.4, 0.1, 0.1, -1.0], [-1.0, -2.0, -3.0, -4.0], [1.0, 2.0, 3.0, 4.0]]
    rma = load("rma").compute(predictions=maps, masks=masks)
    assert rma["num_undefined"] == 2
    assert rma["rma"] == pytest.approx(0.4 / 0.6)
    rra = load("rra").compute(predictions=maps, masks=masks)
    assert rra["num_undefined"] == 1
    assert rra["rra"] == 1.0
    assert np.isnan(rra["per_image"][2])
    nothing = load("rra").compute(predictions=maps, masks=torch.zeros_like(masks))
    assert np.isnan(nothing["rra"])
    assert nothing["num_undefined"] == 3


@pytest.mark.parametrize("name", RANK + RELATIVE)
def test_batch_size_order_and_form_of_the_inputs_change_nothing(load, name):
    pixel_values, maps, targets = game(5, 6)
    maps = np.round(maps)  # ties, ordered at random
    arguments = {"model": lookup, "seed": 3} | ({"n_masks": 8} if name in RELATIVE else {})

    def results(order=range(5), maps=maps, images=pixel_values, **more):
        order = list(order)
        return load(name).compute(
            predictions=maps[order],
            references=[targets[i] for i in order],
            pixel_values=images[order],
            **arguments,
            **more,
        )

    expected = results()
    assert len(set(maps[0])) < 6
    for batch_size in (1, 2, 5):
        assert results(batch_size=batch_size) == expected
    assert results(order=[4, 2, 0, 1, 3])["per_image"] == [expected["per_image"][i] for i in (4, 2, 0, 1, 3)]
    assert results(maps=torch.from_numpy(maps).bfloat16()) == expected  # whole numbers are exact in bfloat16
    assert results(images=pixel_values.numpy()) == expected
    ids = torch.arange(5)
    assert results(ids=ids, batch_size=2) == results(ids=ids.tolist())
    assert results(ids=ids)["per_image"] != expected["per_image"]
    listed = load(name).compute(
        predictions=maps.tolist(), references=torch.tensor(targets), pixel_values=list(pixel_values), **arguments
    )
    assert listed == expected


@pytest.mark.parametrize("name", ["srg", "r_srg"])
def test_every_form_of_a_classifier(load, tiny_classifier, images, save_processor, tmp_path, name):
    classifier, pixel_values = tiny_classifier("dinov2"), images(3)
    maps, targets = torch.randn(3, 16, generator=torch.Generator().manual_seed(0)), [0, 2, 1]
    more = {"n_masks": 4} if name == "r_srg" else {}

    def results(model, **kwargs):
        return load(name).compute(
            predictions=maps, references=targets, pixel_values=pixel_values, model=model, **more, **kwargs
        )

    v = MaskedClassifier(classifier)
    expected = results(v)
    assert max(abs(score) for score in expected["per_image"]) > 0.01
    assert results(classifier) == expected
    assert results(v.probabilities)["per_image"] == pytest.approx(expected["per_image"], abs=1e-5)
    assert results(v, batch_size=1)["per_image"] == pytest.approx(expected["per_image"], abs=1e-5)
    classifier.save_pretrained(tmp_path)
    save_processor(tmp_path)
    assert results(str(tmp_path))["per_image"] == pytest.approx(expected["per_image"], abs=1e-5)


def test_the_model_is_left_as_it_was_and_asked_in_eval_mode(load, tiny_classifier, images):
    classifier = tiny_classifier("dinov2", hidden_dropout_prob=0.5)
    arguments = {"predictions": torch.rand(2, 16), "references": [0, 1], "pixel_values": images(2)}
    expected = load("srg").compute(**arguments, model=classifier)
    v = MaskedClassifier(classifier)
    v.train()
    classifier.base_model.layernorm.eval()  # as for a layer that stays frozen in training
    modes = [module.training for module in v.modules()]
    assert load("srg").compute(**arguments, model=v) == expected
    assert [module.training for module in v.modules()] == modes
    with pytest.raises(ValueError, match="labels are"):
        load("srg").compute(**{**arguments, "references": [0, 7]}, model=v)
    assert [module.training for module in v.modules()] == modes


@pytest.mark.parametrize("name", metric_scripts())
def test_results_can_be_saved_as_json(load, name):
    pixel_values, maps, targets = game(3, 4)
    everything = {
        "references": targets,
        "pixel_values": pixel_values,
        "model": lookup,
        "masks": np.eye(4) > np.ones((3, 1, 1)) / 2,
    }
    metric = load(name)
    arguments = {k: everything[k] for k in everything if k in inspect.signature(metric._compute).parameters}
    results = metric.compute(predictions=np.abs(maps), **arguments)
    assert json.loads(json.dumps(results)) == results
    assert next(iter(results)) == name
    assert "stderr" in results


@pytest.mark.parametrize("name", metric_scripts())
def test_a_module_names_its_score_and_its_family(load, name):
    family = {"rank": shared.RankMetric, "relative": shared.RelativeMetric, "region": shared.RegionMetric}
    metric = load(name)
    assert metric.score == name
    assert isinstance(metric, family[SCORES[name].family])
    assert metric.description.startswith(f"{SCORES[name].title}, ")
    named = re.findall(r"^    (\w+):", metric.inputs_description, flags=re.MULTILINE)
    taken = inspect.signature(metric._compute).parameters
    assert set(named) == set(taken)
    if "n_masks" in taken:
        defaults = inspect.signature(faithfulness.relative_scores).parameters
        shared_names = set(taken) & set(defaults) - {"pixel_values"}
        assert shared_names >= {"n_masks", "budget", "target_stderr", "seed", "ids"}
        assert all(taken[name].default == defaults[name].default for name in shared_names)


def test_combined_metrics_keep_their_names(load):
    pixel_values, maps, targets = game(4, 5)
    arguments = {"predictions": maps, "references": targets, "pixel_values": pixel_values, "model": lookup}
    both = evaluate.combine(["mif", "lif"]).compute(**arguments)
    assert both["mif"] == load("mif").compute(**arguments)["mif"]
    assert both["lif"] == load("lif").compute(**arguments)["lif"]
    assert both["mif_stderr"] != both["lif_stderr"]


def test_batches_added_one_by_one(load):
    pixel_values, maps, targets = game(4, 5)
    metric = load("srg")
    metric.add_batch(predictions=maps[:3], references=targets[:3])
    metric.add_batch(predictions=maps[3:], references=targets[3:])
    together = load("srg").compute(predictions=maps, references=targets, pixel_values=pixel_values, model=lookup)
    assert metric.compute(pixel_values=pixel_values, model=lookup) == together


@pytest.mark.parametrize("name", metric_scripts())
def test_processes_are_refused(name):
    """Images and masks are no features: with two processes, a metric scored one's maps by the other's images."""
    for process in (0, 1):
        with pytest.raises(ValueError, match="num_process must be 1, got 2"):
            evaluate.load(name, num_process=2, process_id=process)


def everything(batch_size=4):
    """What all metrics together need, with masks of 4 x 4 pixels."""
    pixel_values, maps, targets = game(batch_size, 4)
    masks = np.random.default_rng(0).random((batch_size, 4, 4)) < 0.5
    features = {"predictions": maps, "references": targets}
    return features, {"pixel_values": pixel_values, "model": lookup, "masks": masks, "n_masks": 4}


def test_metrics_of_all_families_combine(load):
    """`evaluate.combine` gives every metric all arguments, and each takes its own."""
    features, arguments = everything()
    combined = evaluate.combine(["srg", "r_srg", "rra", "rma"])
    together = combined.compute(**features, **arguments)
    for name in ("srg", "r_srg", "rra", "rma"):
        metric = load(name)
        own = {key: value for key, value in arguments.items() if key in metric._arguments()}
        assert together[name] == metric.compute(**features, **own)[name]
    for prediction, reference in zip(features["predictions"], features["references"], strict=True):
        combined.add(predictions=prediction, references=reference)
    assert combined.compute(**arguments) == together


@pytest.mark.parametrize("name", metric_scripts())
def test_an_argument_of_no_metric_is_refused(load, name):
    features, arguments = everything()
    with pytest.raises(ValueError, match=f"{name} has no argument 'grid'; it has predictions, "):
        load(name).compute(**features, **arguments, grid=(2, 2))


def test_maps_stay_in_the_store_where_an_argument_is_missing(load):
    features, arguments = everything()
    metric = load("srg")
    metric.add_batch(**features)
    with pytest.raises(ValueError, match="srg needs model= and pixel_values="):
        metric.compute()
    assert metric.compute(**arguments) == load("srg").compute(**features, **arguments)


def test_images_belong_to_maps_in_the_order_in_which_they_were_added(load):
    features, arguments = everything()
    metric = load("srg")
    for index in (2, 0, 3, 1):
        metric.add(prediction=features["predictions"][index], reference=features["references"][index])
    arguments["pixel_values"] = arguments["pixel_values"][[2, 0, 3, 1]]
    found = metric.compute(**arguments)["per_image"]
    expected = load("srg").compute(**features, **everything()[1])["per_image"]
    assert found == [expected[index] for index in (2, 0, 3, 1)]


@pytest.mark.parametrize("name", metric_scripts())
def test_float64_maps_keep_their_precision(load, name):
    """Scaled and shifted, they had infinite values, zeros and ties in float32."""
    features, arguments = everything()
    maps = features["predictions"].astype(np.float64) * 2**20
    maps = np.abs(maps.round()) if name == "rma" else maps.round()
    expected = load(name).compute(predictions=maps, references=features["references"], **arguments)
    for other in (maps * 2.0**130, maps * 2.0**-170, *([maps + 2.0**50] if name != "rma" else [])):
        assert load(name).compute(predictions=other, references=features["references"], **arguments) == expected


@pytest.mark.parametrize("name", REGION)
def test_patch_maps_and_pixel_maps_are_not_mixed(load, name):
    metric = load(name)
    metric.add(prediction=np.ones(4))
    with pytest.raises(ValueError, match=r"all patch maps .* or all pixel maps .*, both were added"):
        metric.add(prediction=np.ones((4, 4)))
    with pytest.raises(ValueError, match=r"all patch maps .* or all pixel maps .*, got both"):
        metric.add_batch(predictions=[np.ones(4), np.ones((4, 4))])
    assert metric.compute(masks=np.eye(4)[None] > 0)["num_undefined"] == 0


def test_images_are_counted_over_all_batches_in_a_message(load):
    features, arguments = everything()
    arguments["pixel_values"][3] = np.nan
    with pytest.raises(ValueError, match=r"in the batch that begins with image 2: .* images at \[1\]"):
        load("srg").compute(**features, **arguments, batch_size=2)


@pytest.mark.parametrize("name", ["srg", "r_lif"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, "needs model="),
        ({"pixel_values": None}, "needs pixel_values="),
        ({"model": None, "pixel_values": None}, "needs model= and pixel_values="),
        ({"references": None}, "needs references"),
        ({"predictions": None, "references": None}, "needs predictions"),
        ({"predictions": np.zeros((0, 4)), "references": []}, "not empty, got float64"),
        ({"predictions": [[1.0] * 4] * 2 + [[1.0] * 3]}, r"real numbers \[B, N\], got \[\[1.0, 1.0, 1.0, 1.0\]"),
        ({"predictions": np.array([[0, 0, 0, 0], [0, 0, np.inf, 0], [0, 0, 0, 0]])}, r"NaN or infinite .* \[1\]"),
        ({"predictions": np.array([[0, 0, 0, 0], [0, 0, 0, 0], [0, np.nan, 0, 0]]), "batch_size": 1}, r"NaN .* \[2\]"),
        ({"references": [0, 3, 1]}, r"contain 3; the classifier's labels are 0\.\.2"),
        ({"references": [0, -1, 1]}, "contain -1"),
        ({"references": [0.5, 1.0, 0.0]}, r"references must be whole numbers \[B\] with B = 3, got float64 \[3\]"),
        ({"references": [True, False, True]}, r"references must be whole numbers .*, got bool \[3\]"),
        ({"references": 1}, r"references must be whole numbers \[B\] with B = 3, got 1"),
        ({"predictions": np.ones((3, 2, 2))}, r"predictions must be real numbers \[B, N\], got float64 \[3, 2, 2\]"),
        ({"seed": 0.5}, "seed must be a whole number, got 0.5"),
        ({"pixel_values": torch.zeros(2, 3, 1, 16)}, "pixel_values: 2 items for 3 predictions"),
        ({"ids": [1, 2]}, r"ids must be whole numbers \[B\] with B = 3, got int64 \[2\]"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"model": lambda x, s: lookup(x, s)[..., 0]}, r"probabilities \[B, M, K\]"),
        ({"model": lambda x, s: lookup(x, s) * torch.nan}, r"returned NaN .* \[0, 1, 2\]"),
    ],
)
def test_what_is_wrong_is_named(load, name, changes, message):
    pixel_values, maps, _ = game(3, 4)
    arguments = {"predictions": maps, "references": [0, 1, 2], "pixel_values": pixel_values, "model": lookup}
    with pytest.raises(ValueError, match=message):
        load(name).compute(**{**arguments, **changes})


def test_a_map_on_another_grid_than_the_classifiers(load, tiny_classifier, images):
    arguments = {"references": [0, 1], "pixel_values": images(2), "model": tiny_classifier("dinov2")}
    with pytest.raises(ValueError, match=r"9 patches.* the classifier sees 4 x 4"):
        load("srg").compute(predictions=torch.rand(2, 9), **arguments)


@pytest.mark.parametrize("name", REGION)
@pytest.mark.parametrize(
    ("predictions", "changes", "message"),
    [
        (np.ones((2, 4)), {"masks": None}, "needs masks="),
        (None, {}, "needs predictions"),
        (np.ones((0, 4)), {}, "not empty, got float64"),
        (np.ones((2, 3, 4, 4)), {}, r"real numbers \[B, N\] or \[B, H, W\], got float64 \[2, 3, 4, 4\]"),
        (np.ones((2, 4)), {"grid_size": 2}, "grid_size must be two positive whole numbers, got 2"),
        (np.ones((2, 4)), {"upsampling": "cubic"}, "upsampling must be one of bilinear, nearest, got 'cubic'"),
        (np.ones((3, 4)), {}, "masks: 2 items for 3 predictions"),
        (np.ones((2, 6)), {}, r"grid_size=\(rows, columns\) is needed: 6"),
        (np.ones((2, 6)), {"grid_size": (2, 2)}, "6 patches, grid_size 2 x 2"),
        (np.ones((2, 2, 4)), {}, "2 x 4 pixels, its mask 4 x 4"),
        (
            np.ones((2, 4)),
            {"masks": np.ones((2, 4, 4), np.uint8)},
            r"image 0: masks must be boolean \[H, W\], got uint8 \[4, 4\]",
        ),
        (np.array([[1, 1, 1, 1], [1, np.nan, 1, 1]]), {}, r"NaN or infinite for the images at \[1\]"),
    ],
)
def test_what_is_wrong_with_regions_is_named(load, name, predictions, changes, message):
    with pytest.raises(ValueError, match=message):
        load(name).compute(predictions=predictions, **{"masks": np.ones((2, 4, 4), bool), **changes})
