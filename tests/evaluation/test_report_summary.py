"""The report's sentences say what the numbers say, also where the trained explainers lose or nothing is sure."""

import json
from pathlib import Path

import numpy as np
import pytest

from salvage_hf.evaluation.ranking import ranking
from salvage_hf.evaluation.reading import read_benchmark
from salvage_hf.evaluation.report_settings import benchmark_origin
from salvage_hf.evaluation.report_summary import ablation_summary, benchmark_summary
from salvage_hf.evaluation.scores import SCORES

NOISE = np.random.default_rng(0).normal(0, 0.1, 20)


@pytest.fixture
def summary(make_benchmark):
    """A function: the text about a benchmark of 20 images whose methods have these SRGs, one or one per image."""

    def make(images=20, recipe="", **scores):
        folder, results = make_benchmark(num_images=images)
        entries = {name: results["methods"][name] for name in scores}
        for name, values in scores.items():
            for other in ("r_srg", "rra", "rma"):
                del entries[name][other]
            entries[name]["srg"] = (np.zeros(images) + values).tolist()
        results["methods"] = entries
        Path(folder, "results.json").write_text(json.dumps(results))
        if recipe:
            Path(folder, "recipe.yaml").write_text(recipe)
        made = benchmark_summary("Pets", read_benchmark(Path(folder)))
        return made.answer, "\n".join(point.text for point in made.points)

    return make


def test_a_clear_winner(summary):
    answer, points = summary(salvage=0.8 + NOISE, rise=0.5 + NOISE, random=0.01)
    assert "3 methods explained an image classifier on 20 images of Pets" in answer
    assert "2 x 2 = 4 patches" in answer
    assert "explains best, before “RISE”" in answer
    assert "Its lead, 30.0 points (30.0 to 30.0 in 90% of the resamples), is no chance" in answer
    assert "1,234.5 by “Salvage” (250 ms) and 1,234.5 by “RISE” (250 ms)" in answer
    assert "is in place 1 of 3" in points
    assert "No explainer" not in points
    assert "Random maps have 1.0" in points
    assert "Right on the 40 images are: “Classifier”" in points


def test_methods_that_are_not_told_apart(summary):
    answer, points = summary(rise=0.5, salvage=0.499 + NOISE - NOISE.mean(), last_attention=0.1)
    assert "comes before “Salvage”" in answer
    assert "but cannot be told apart from “Salvage” (paired bootstrap over 20 images)" in answer
    assert "best" not in answer
    assert "No explainer that was trained for this classifier is first by SRG." in points
    assert "0.1 points behind “RISE” (which may be chance: -" in points


def test_a_trained_explainer_that_loses(summary):
    answer, points = summary(rise=0.9 + NOISE, vit_shapley=0.7 + NOISE, salvage=0.4 + NOISE, random=0.0)
    assert "“RISE”" in answer.partition("explains best")[0]
    assert "No explainer that was trained for this classifier is first by SRG." in points
    assert (
        "is in place 3 of 4, 50.0 points behind “RISE” (no chance: 50.0 to 50.0), and 30.0 points behind “ViT" in points
    )


def test_few_images_and_a_single_method(summary):
    answer, points = summary(images=9, salvage=0.8, rise=0.5)
    assert "9 images are too few to say whether this is chance (10 are needed)" in answer
    assert "no chance" not in answer + points


def test_a_method_alone_is_compared_with_nothing(summary):
    answer, _ = summary(salvage=0.8)
    assert "One method explained" in answer
    assert "with nothing to compare it with" in answer


def test_the_classifier_is_named_without_the_folders_of_this_machine(summary):
    recipe = "# accelerate launch x\nmodel_name_or_path: {}\nexplainers: [salvage=/home/me/a=b/last]\n"
    assert "explained the classifier “…/cats”" in summary(recipe=recipe.format("/home/me/cats"), salvage=0.8)[0]


def test_the_origin_of_a_benchmark(make_benchmark):
    folder, results = make_benchmark()
    for version, entry in zip(["2.9", "2.8", "2.9"], results["methods"].values(), strict=False):  # the others have none
        entry["measured_on"] = {"device": "cpu", "torch": version}
    Path(folder, "results.json").write_text(json.dumps(results))
    assert benchmark_origin("Pets", read_benchmark(Path(folder))).command == ""
    recipe = (
        "# accelerate launch x\n# more\nmodel_name_or_path: org/cats\nexplainers: [salvage=/home/a=b/last]\nseed: 0\n"
    )
    Path(folder, "recipe.yaml").write_text(recipe)
    origin = benchmark_origin("Pets", read_benchmark(Path(folder)))
    assert origin.command == "accelerate launch x"
    shown = {"model_name_or_path": "org/cats", "explainers": "salvage=…/last", "seed": "0"}
    assert origin.lists["Arguments (recipe.yaml)"] == shown
    measured = origin.lists["Measured with"]
    assert measured["relative"] == '{"n_masks": 4, "images": 5}'
    assert (measured["device"], measured["torch"]) == ("cpu", "2.8, 2.9")
    assert [row[0].text for row in origin.methods.rows] == ["Salvage", "ViT-Shapley", "RISE", "Attn. last", "Random"]
    Path(folder, "recipe.yaml").write_text("[1, 2]")
    with pytest.raises(ValueError, match=r"recipe\.yaml"):
        read_benchmark(Path(folder))


def test_a_ranking_turns_around_where_less_is_better():
    methods = {"rise": {"mif": [0.2] * 12}, "salvage": {"mif": [0.5] * 12}, "random": {"mif": [None] * 12}}
    order = ranking(methods, SCORES["mif"])
    assert order.names == ["rise", "salvage"]
    assert order.compared("rise", "salvage") == pytest.approx((0.3, 0.3, 0.3))
    assert order.is_apart("rise", "salvage")
    assert ranking(methods, SCORES["srg"]) is None


def test_an_ablation_is_told_by_its_seeds(ablation):
    _, content = ablation
    levels = {"vit_shapley-uniform": 0.1, "salvage-uniform": 0.2, "salvage-guided": 0.4, "salvage-guided-4": 0.3}
    for name, level in levels.items():
        for seed, run in content["arms"][name].items():
            run["r_srg"] = [level + 0.01 * int(seed)] * 6
    answer = ablation_summary("Pets", content).answer
    assert (
        "“Salvage, informed” has the highest R-SRG, 41.0 (40.0 to 42.0, 3 seeds); each of its seeds lies above"
        in answer
    )
    content["arms"]["salvage-guided-4"]["0"]["r_srg"] = [0.405] * 6
    assert "its seeds and those of the next overlap" in ablation_summary("Pets", content).answer
    content["arms"] = {name: {"0": runs["0"]} for name, runs in content["arms"].items()}
    assert "single runs, of which nothing is sure" in ablation_summary("Pets", content).answer
