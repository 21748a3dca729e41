"""The exact values against literal versions of their definitions, and the run that correlates maps with them."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from scipy import stats
from transformers import AutoImageProcessor

from salvage_hf import MaskedClassifier, SalvageModel, attribution_methods
from salvage_hf.data.loading import open_image
from salvage_hf.evaluation import exact
from salvage_hf.evaluation.exact import (
    TRUTHS,
    ExactArguments,
    all_subsets,
    correlation,
    exact_values_table,
    predictions,
    run_exact_values,
    shapley_values,
)

# The definitions


def literal_game(num_patches, seed=0):
    """A game as a function of a set of patches, and its values in the order of `all_subsets`."""
    values = torch.randn(2**num_patches, generator=torch.Generator().manual_seed(seed)).double()
    return lambda patches: values[sum(2**patch for patch in patches)].item(), values


@pytest.mark.parametrize("num_patches", range(2, 7))
def test_shapley_values_are_the_mean_gain_over_all_orders_of_the_patches(num_patches):
    value, game = literal_game(num_patches)
    expected = torch.zeros(num_patches, dtype=torch.float64)
    for order in itertools.permutations(range(num_patches)):
        for place, patch in enumerate(order):
            expected[patch] += value({*order[:place], patch}) - value({*order[:place]})
    torch.testing.assert_close(shapley_values(game), expected / math.factorial(num_patches))


@pytest.mark.parametrize("num_patches", [2, 9, 16])
def test_shapley_values_sum_to_what_all_patches_gain(num_patches):
    _, game = literal_game(num_patches)
    torch.testing.assert_close(shapley_values(game).sum(), game[-1] - game[0])


def test_in_an_additive_game_the_values_are_the_patches_own():
    own = torch.tensor([0.3, -1.0, 0.0, 2.5, 0.3], dtype=torch.float64)
    game = 7 + all_subsets(5).double() @ own
    torch.testing.assert_close(shapley_values(game), own)


def test_a_game_that_never_changes_has_values_of_exactly_zero():
    game = torch.full((2**16,), 0.1, dtype=torch.float64)
    assert not shapley_values(game).any()


def test_all_subsets_are_there_once():
    subsets = all_subsets(4)
    assert not subsets[0].any()
    assert subsets[-1].all()
    assert subsets[0b0110].tolist() == [False, True, True, False]
    assert len({tuple(subset) for subset in subsets.tolist()}) == 16


@pytest.mark.parametrize("num_patches", [0, 1, 17, 64])
def test_numbers_of_patches_that_cannot_be_enumerated_are_refused(num_patches):
    with pytest.raises(ValueError, match=f"must have 2 to 16 patches, .* they have {num_patches}: give a classifier"):
        all_subsets(num_patches)


# Predictions


@pytest.mark.parametrize(("num_labels", "target"), [(3, 2), (1, 0), (1, 1)])
def test_predictions_are_those_of_the_target_class(tiny_classifier, images, monkeypatch, num_labels, target):
    v, pixel_values, subsets = MaskedClassifier(tiny_classifier(num_labels=num_labels)), images(1, 8), all_subsets(4)
    monkeypatch.setattr(exact, "_BLOCK_SIZE", 5)
    found = predictions(v, pixel_values, torch.tensor([target]), subsets, "")
    for number, subset in enumerate(subsets):
        logits = v.logits(pixel_values, subset[None, None])[0, 0].double()
        if num_labels == 1:
            sign = 1 if target else -1
            log, probability = sign * logits[0], torch.sigmoid(sign * logits[0])
        else:
            logs = logits.log_softmax(dim=0)
            log, probability = logs[target] - logs.mean(), logs[target].exp()
        torch.testing.assert_close(found["log_probability"][number], log, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found["probability"][number], probability, rtol=1e-4, atol=1e-5)


# Correlations


@pytest.mark.parametrize(("coefficient", "literal"), [("pearson", stats.pearsonr), ("spearman", stats.spearmanr)])
def test_correlations_are_those_of_scipy(coefficient, literal):
    generator = torch.Generator().manual_seed(0)
    maps, truths = torch.randn(2, 6, 9, generator=generator).double()
    maps[3:] = maps[3:].round()  # equal values
    found = correlation(maps, truths, coefficient)
    expected = [literal(row.numpy(), truth.numpy())[0] for row, truth in zip(maps, truths, strict=True)]
    torch.testing.assert_close(found, torch.tensor(np.array(expected)))


@pytest.mark.parametrize("coefficient", ["pearson", "spearman"])
def test_a_constant_map_has_no_correlation(coefficient):
    truths = torch.arange(6.0)[None]
    assert correlation(torch.full((1, 6), 0.1), truths, coefficient).isnan().all()
    assert correlation(truths, torch.zeros(1, 6), coefficient).isnan().all()


# The run


@pytest.fixture
def arguments(tiny_classifier, save_processor, tmp_path):
    """A factory of arguments: a classifier with images of 2 x 4 patches, an explainer, six images."""
    classifier = tiny_classifier()
    classifier.save_pretrained(tmp_path / "classifier")
    save_processor(tmp_path / "classifier", crop_size={"height": 8, "width": 16})
    torch.manual_seed(0)
    explainer = SalvageModel.from_classifier(classifier)
    torch.nn.init.normal_(explainer.head.class_projection.weight)
    explainer.save_pretrained(tmp_path / "explainer")
    rng = np.random.default_rng(0)
    for label, number in itertools.product(range(3), range(2)):
        (tmp_path / "images" / f"LABEL_{label}").mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8))
        picture.save(tmp_path / "images" / f"LABEL_{label}" / f"{number}.png")

    def build(**changes):
        methods = changes.get("methods", ["salvage", "random", "salvage_refined"])
        trained = any(attribution_methods.REGISTRY[name].objective for name in methods)
        return ExactArguments(
            **{
                "model_name_or_path": str(tmp_path / "classifier"),
                "explainers": [f"salvage={tmp_path / 'explainer'}"] if trained else [],
                "methods": methods,
                "validation_dir": str(tmp_path / "images"),
                "max_eval_samples": 4,
                "budgets": [0, 32],
                "output_dir": str(tmp_path / "out"),
                **changes,
            }
        )

    return build


def test_the_results_are_those_of_single_images(arguments, tmp_path):
    args = arguments()
    results = run_exact_values(args)
    assert json.loads((tmp_path / "out" / "exact_values.json").read_text()) == results
    assert len(results["ids"]) == 4
    assert set(results["maps"]) == {
        *("salvage", "random"),
        *("salvage_refined_0", "salvage_refined_32"),
    }
    v = MaskedClassifier.from_pretrained(args.model_name_or_path)
    processor = AutoImageProcessor.from_pretrained(args.model_name_or_path)
    explainer = SalvageModel.from_pretrained(tmp_path / "explainer").eval()
    everything = all_subsets(8)
    for position, (name, target) in enumerate(zip(results["ids"], results["targets"], strict=True)):
        assert f"LABEL_{target}" in name
        pixels = processor(open_image(tmp_path / "images" / name), return_tensors="pt")["pixel_values"]
        targets = torch.tensor([target])
        game = v.probabilities(pixels, everything[None])[0, :, target].double()
        logs = v.logits(pixels, everything[None])[0].double().log_softmax(dim=-1)
        truths = {
            "shapley_log_probability": shapley_values(logs[:, target] - logs.mean(dim=-1)),
            "shapley_probability": shapley_values(game),
        }
        rows = {"salvage": {}, "salvage_refined": {"budget": 32}}
        maps = {
            "salvage" if name == "salvage" else "salvage_refined_32": attribution_methods.load(
                name, v, explainer=explainer, **options
            )(pixels, targets)
            for name, options in rows.items()
        }
        maps["random"] = attribution_methods.load("random", v)(pixels, targets)
        for truth, values in truths.items():
            torch.testing.assert_close(
                torch.tensor(results["exact"][truth][position]).double(), values, rtol=1e-4, atol=1e-5
            )
            for row, found in maps.items():
                entry = results["maps"][row]["correlations"][truth]
                pair = found[0].detach().double().numpy(), values.numpy()
                assert entry["pearson"][position] == pytest.approx(stats.pearsonr(*pair)[0], abs=1e-3)
                assert entry["spearman"][position] == pytest.approx(stats.spearmanr(*pair)[0], abs=1e-3)
    of_images = results["maps"]["random"]["correlations"]["shapley_probability"]["pearson"]
    assert results["maps"]["random"]["mean"]["shapley_probability"]["pearson"] == pytest.approx(
        np.mean(of_images), abs=1e-5
    )
    stderr = results["maps"]["random"]["stderr"]["shapley_probability"]["pearson"]
    assert stderr == pytest.approx(stats.sem(of_images), abs=1e-5)


@pytest.fixture
def asked(monkeypatch):
    """The images that the classifier is asked about; the one numbered `asked.stop_at` stops the run."""

    class Asked(list):
        stop_at = None

    names = Asked()

    def counting(*inputs, title):
        if len(names) == names.stop_at:
            raise KeyboardInterrupt
        names.append(title)
        return predictions(*inputs, title=title)

    monkeypatch.setattr(exact, "predictions", counting)
    return names


def test_a_stopped_run_goes_on_after_its_last_image(arguments, asked, tmp_path):
    whole = run_exact_values(arguments(output_dir=str(tmp_path / "whole")))
    assert asked == whole["ids"]
    asked.clear()
    asked.stop_at = 3
    with pytest.raises(KeyboardInterrupt):
        run_exact_values(arguments())
    assert not (tmp_path / "out" / "exact_values.json").exists()
    asked.stop_at = None
    assert run_exact_values(arguments()) == whole
    assert asked == whole["ids"]  # none twice
    assert run_exact_values(arguments(methods=["random"]))["exact"] == whole["exact"]
    assert asked == whole["ids"]


def test_predictions_of_another_masking_or_classifier_are_not_taken_up(arguments, asked, tiny_classifier, tmp_path):
    first = run_exact_values(arguments(methods=["random"]))
    run_exact_values(arguments(methods=["random"], masking="zero"))
    assert asked == first["ids"] * 2
    tiny_classifier(seed=1).save_pretrained(tmp_path / "classifier")
    assert run_exact_values(arguments(methods=["random"]))["exact"] != first["exact"]
    assert asked == first["ids"] * 3


@pytest.mark.parametrize("damage", ["cut off", "of fewer subsets"])
def test_damaged_predictions_are_made_again(arguments, asked, tmp_path, caplog, damage):
    whole = run_exact_values(arguments(methods=["random"]))
    file = sorted((tmp_path / "out" / "predictions").iterdir())[0]
    if damage == "cut off":
        file.write_bytes(file.read_bytes()[:-8])
    else:
        exact.write_tensors(file, {name: values[:-1] for name, values in load_file(file).items()})
    assert run_exact_values(arguments(methods=["random"])) == whole
    assert len(asked) == 5
    assert "asked about again" in caplog.text


def test_the_table_has_a_row_per_method_and_budget(arguments):
    lines = exact_values_table(run_exact_values(arguments(methods=["random", "salvage_refined"]))).splitlines()
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines[2:]] == [
        "Random",
        "Salvage, refined, 0 forwards",
        "Salvage, refined, 32 forwards",
    ]
    assert all(line.count("|") == 2 + 2 * len(TRUTHS) for line in lines)
    assert all(line.count("±") == 2 * len(TRUTHS) for line in lines[2:])


def test_a_constant_map_is_no_number_in_the_table(arguments, monkeypatch):
    info = attribution_methods.REGISTRY["random"]
    constant = lambda classifier, seed=0: lambda pixel_values, targets: torch.ones(len(targets), 8)  # noqa: E731
    monkeypatch.setitem(attribution_methods.REGISTRY, "random", with_build(info, constant))
    results = run_exact_values(arguments(methods=["random"]))
    assert results["maps"]["random"]["mean"]["shapley_probability"] == {"pearson": None, "spearman": None}
    assert exact_values_table(results).splitlines()[-1] == "| Random" + " | -" * 4 + " |"
    json.dumps(results, allow_nan=False)


# What is refused


def with_build(info, build):
    return type(info)(**{**vars(info), "build": build})


def test_too_many_patches_are_refused_before_anything_is_loaded(arguments, save_processor, tmp_path):
    save_processor(tmp_path / "classifier", 20)
    with pytest.raises(ValueError, match=r"must have 2 to 16 patches, .* they have 25"):
        run_exact_values(arguments())
    assert not (tmp_path / "out").exists()


def test_what_is_not_finite_is_refused_with_its_image(arguments, monkeypatch):
    info = attribution_methods.REGISTRY["random"]
    broken = lambda classifier, seed=0: lambda pixel_values, targets: torch.full((1, 8), torch.nan)  # noqa: E731
    with monkeypatch.context() as patch:
        patch.setitem(attribution_methods.REGISTRY, "random", with_build(info, broken))
        with pytest.raises(ValueError, match=r"random gives NaN or infinite attributions of 'LABEL_\d/\d.png'"):
            run_exact_values(arguments(methods=["random"]))
    monkeypatch.setattr(
        exact, "predictions", lambda *_, title: dict.fromkeys(exact.GAMES, torch.full((256,), torch.inf))
    )
    with pytest.raises(ValueError, match=r"answers NaN or infinity to subsets of 'LABEL_\d/\d.png'"):
        run_exact_values(arguments(methods=["random"]))


@pytest.mark.parametrize("budgets", [[], [8], [-1], [64, 64], [0, 15]])
def test_wrong_budgets_are_refused(arguments, budgets):
    with pytest.raises(ValueError, match="budgets must be one number or more, 0 or at least 16, each once, got"):
        arguments(budgets=budgets)
