"""The report: it makes every table and figure from finished results alone, and shows their numbers."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from faults import states_of_kills
from fresh_processes import run_fresh
from sklearn.metrics import matthews_corrcoef

from salvage_hf.evaluation import report_figures, report_tables
from salvage_hf.evaluation.ranking import shown_methods
from salvage_hf.evaluation.reading import read_ablation
from salvage_hf.evaluation.report import ReportArguments, write_report
from salvage_hf.evaluation.report_sections import ablation_sections
from salvage_hf.evaluation.results import arms_with

METHODS = ("salvage", "vit_shapley", "rise", "last_attention", "random")  # of `make_benchmark`


def test_every_table_and_figure_of_the_paper_is_made_without_a_model(make_benchmark, ablation, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", None)
    folder, _ = make_benchmark()
    page = write_report(ReportArguments([folder], [f"Pets={ablation[0]}"], str(tmp_path / "report")))
    assert {path.stem for path in (tmp_path / "report" / "figures").glob("*.png")} == {
        f"figure{number}" for number in range(1, 8)
    }
    tables = {path.name for path in (tmp_path / "report" / "tables").iterdir()}
    assert tables == {
        f"{name}.{kind}" for name in ("table1", "table2", "table3", "table4", "cost") for kind in ("md", "tex")
    }
    text = page.read_text()
    assert text.count("data:image/webp;base64,") == 2 * 7  # for light and for dark pages
    assert "://" not in text  # it needs no other file
    for number in range(1, 8):
        assert f"Figure {number}: " in text


def test_the_report_loads_no_training_and_no_benchmark(tmp_path):
    """Only this library is checked: `import salvage_hf` loads transformers, which loads accelerate."""
    found = run_fresh("import sys, salvage_hf.evaluation.report; print(*sys.modules)", tmp_path).split()
    assert "salvage_hf.evaluation.report_figures" in found
    heavy = {"salvage_hf.training", "datasets", "evaluate"}
    heavy |= {f"salvage_hf.evaluation.{name}" for name in ("benchmark", "scoring", "cost", "ablation", "arguments")}
    assert heavy.isdisjoint(found)


@pytest.mark.usefixtures("undrawn")
def test_the_page_says_what_the_tables_mark_and_escapes_titles(make_benchmark, tmp_path):
    folder, results = make_benchmark(num_images=12)
    for place, name in enumerate(METHODS):
        results["methods"][name]["srg"] = [0.9 - 0.2 * place + 0.001 * (number % 3) for number in range(12)]
    Path(folder, "results.json").write_text(json.dumps(results))
    other, _ = make_benchmark("other")
    page = write_report(ReportArguments([f"<Pets & more>={folder}", other], [], str(tmp_path / "report"))).read_text()
    assert '<tr class="trained"><th scope="row">Salvage</th><td><b>90.1 ± 0.0</b></td>' in page
    assert '<th scope="row">ViT-Shapley</th><td><u>70.1 ± 0.0</u></td>' in page
    assert '<tr><th scope="row">RISE</th><td>50.1 ± 0.0</td>' in page
    assert '<th scope="col">&lt;Pets &amp; more&gt; SRG ↑</th>' in page
    assert "Pets & more" not in page


@pytest.mark.usefixtures("undrawn")
def test_scores_that_were_not_asked_for_are_left_out(make_benchmark, tmp_path):
    """With regions alone there is nothing on faithfulness; rank scores of some images state how many these are."""
    folder, results = make_benchmark()
    partly, _ = make_benchmark("Partly")
    for scores in results["methods"].values():
        for name in ("srg", "lif", "mif", "r_srg", "r_lif", "r_mif"):
            del scores[name]
        scores["curves"] = {}
    results["settings"] = {"rank": {"images": 0}, "relative": {"n_masks": 4, "images": 0}}
    Path(folder, "results.json").write_text(json.dumps(results))
    page = write_report(ReportArguments([folder], [], str(tmp_path / "report")))
    assert {path.stem for path in (tmp_path / "report" / "figures").iterdir()} == {"figure1", "figure4", "figure5"}
    assert {path.stem for path in (tmp_path / "report" / "tables").iterdir()} == {"table1", "table4", "cost"}
    assert _table(tmp_path / "report" / "tables" / "table1.md")[0] == ["method", "RMA ↑", "RRA ↑"]
    assert "Pets: 8 images. " in page.read_text()

    results = json.loads(Path(partly, "results.json").read_text())
    for scores in results["methods"].values():
        scores["srg"] = [0.5, 0.7, *[None] * 6]
        for name in ("r_srg", "r_lif", "r_mif"):
            del scores[name]
        scores["curves"] = {name: scores["curves"][name] for name in ("lif", "mif")}
    results["settings"] = {"rank": {"images": 2}, "relative": {"n_masks": 4, "images": 0}}
    Path(partly, "results.json").write_text(json.dumps(results))
    page = write_report(ReportArguments([partly], [], str(tmp_path / "partly")))
    assert _table(tmp_path / "partly" / "tables" / "table1.md")[2][1] == "60.0 ± 10.0"
    assert {path.stem for path in (tmp_path / "partly" / "figures").iterdir()} == {
        f"figure{number}" for number in (1, 2, 4, 5)
    }
    assert "8 images, rank scores on 2 of them. " in page.read_text()
    both = ReportArguments([folder, partly], [], str(tmp_path / "both"))
    write_report(both)
    assert _table(tmp_path / "both" / "tables" / "table1.md")[0][1:3] == ["Pets RMA ↑", "Pets RRA ↑"]


@pytest.mark.usefixtures("undrawn")
def test_tables_hold_the_results(make_benchmark, tmp_path):
    folder, results = make_benchmark()
    write_report(ReportArguments([folder], [], str(tmp_path / "report")))
    rows = _table(tmp_path / "report" / "tables" / "table1.md")
    assert rows[0] == ["method", "SRG ↑", "R-SRG ↑", "RMA ↑", "RRA ↑"]
    by_name = {row[0]: row[1:] for row in rows[2:]}
    assert list(by_name) == ["Salvage", "ViT-Shapley", "RISE", "Attn. last", "Random"]  # the registry's order
    for title, method in (("Salvage", "salvage"), ("Attn. last", "last_attention")):
        for cell, score in zip(by_name[title], ("srg", "r_srg", "rma", "rra"), strict=True):
            values = [value for value in results["methods"][method][score] if value is not None]
            expected = f"{100 * np.mean(values):.1f} ± {100 * np.std(values, ddof=1) / len(values) ** 0.5:.1f}"
            assert re.sub("[*<>u/]", "", cell) == expected
    cost = _table(tmp_path / "report" / "tables" / "cost.md")
    assert cost[2] == ["Salvage", "1,234.5", "0.25"]
    text = (tmp_path / "report" / "index.html").read_text()
    assert "8 images, relative scores on 5 of them with 4 draws per size" in text
    assert "RMA of Salvage on 2 images of Pets" in text
    assert "RRA of Salvage on 1 image of Pets" in text


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("num_labels", [1, 3])
def test_classification_is_that_of_the_confusion_matrix(make_benchmark, tmp_path, num_labels):
    folder, results = make_benchmark(num_labels=num_labels)
    write_report(ReportArguments([folder], [], str(tmp_path / "report")))
    rows = {row[0]: row[1:] for row in _table(tmp_path / "report" / "tables" / "table4.md")[2:]}
    assert list(rows) == ["Classifier", "ViT-Shapley", "Salvage"]
    labels, predicted = results["classification"]["labels"], results["classification"]["salvage"]["predictions"]
    shares = []
    for kind in [1] if num_labels == 1 else range(3):
        hits = sum(a == b == kind for a, b in zip(labels, predicted, strict=True))
        precision, recall = hits / max(1, predicted.count(kind)), hits / labels.count(kind)
        shares.append((precision, recall, 2 * precision * recall / (precision + recall)))
    accuracy = np.mean(np.array(labels) == predicted)
    expected = [f"{100 * share:.1f}%" for share in (accuracy, *np.mean(shares, axis=0))]
    same = np.mean(np.array(predicted) == results["classification"]["classifier"]["predictions"])
    assert rows["Salvage"] == [*expected, f"{matthews_corrcoef(labels, predicted):.3f}", f"{100 * same:.1f}%"]


def test_a_wrong_answer_of_a_class_without_images_is_none_of_the_classes(make_benchmark):
    _, results = make_benchmark()
    labels = [1] * 10
    predictions = {name: {"predictions": [1] * 9 + [2]} for name in ("classifier", "salvage")}
    table = report_tables.classification_table({"": {**results, "classification": {"labels": labels, **predictions}}})
    for row in table.rows:
        assert [cell.text for cell in row[1:6]] == ["90.0%", "100.0%", "90.0%", "94.7%", "-"]


def test_explainers_of_every_objective_are_classified(make_benchmark):
    _, results = make_benchmark()
    results["classification"]["fastshap"] = results["classification"]["salvage"]
    rows = report_tables.classification_table({"": results}).rows
    assert [row[0].text for row in rows] == ["Classifier", "FastSHAP", "ViT-Shapley", "Salvage"]
    *axes, _ = report_figures.correctness_matrices({"Pets": results}).axes  # the last is the bar of colours
    titles = [axis.get_title() for axis in axes]
    assert titles == ["Pets: Salvage", "Pets: ViT-Shapley", "Pets: FastSHAP"]


def test_correctness_matrix(make_benchmark):
    _, results = make_benchmark()
    figure = report_figures.correctness_matrices({"Pets": results})
    assert [axis.get_title() for axis in figure.axes[:-1]] == ["Pets: Salvage", "Pets: ViT-Shapley"]
    drawn = [float(text.get_text()) for text in figure.axes[0].texts]
    labels = results["classification"]["labels"]
    right = {
        name: [a == b for a, b in zip(labels, results["classification"][name]["predictions"], strict=True)]
        for name in ("salvage", "classifier")
    }
    pairs = list(zip(right["salvage"], right["classifier"], strict=True))
    expected = [100 * pairs.count(pair) / 40 for pair in ((True, True), (True, False), (False, True), (False, False))]
    assert drawn == pytest.approx(expected, abs=0.05)


def test_figure_2_shows_the_trained_explainers_the_best_others_and_random(make_benchmark):
    """The trained ones also where they are worst: a figure that left them out would hide it."""
    _, results = make_benchmark()
    methods = results["methods"]
    methods |= dict.fromkeys(("saliency", "gradcam", "eigencam"), methods["rise"])
    order = ("rise", "saliency", "gradcam", "random", "eigencam", "last_attention", "vit_shapley", "salvage")
    methods = {name: {**methods[name], "srg": [1.0 - 0.1 * place] * 8} for place, name in enumerate(order)}
    assert shown_methods(methods) == ["rise", "saliency", "gradcam", "random", "vit_shapley", "salvage"]
    figure = report_figures.cardinality_curves({"Pets": methods})
    assert [axis.get_title() for axis in figure.axes] == ["LIF ↑", "MIF ↓", "SRG ↑", "R-LIF ↑", "R-MIF ↓", "R-SRG ↑"]
    lines = {line.get_label(): line for line in figure.axes[5].get_lines()}
    assert list(lines) == ["RISE", "Saliency", "GradCAM", "Random", "ViT-Shapley", "Salvage"]
    curves = methods["rise"]["curves"]
    np.testing.assert_allclose(lines["RISE"].get_ydata(), np.array(curves["r_lif"]) - curves["r_mif"])
    widths = {label: line.get_linewidth() for label, line in lines.items()}
    assert min(widths["Salvage"], widths["ViT-Shapley"]) > max(widths["RISE"], widths["Random"])
    assert lines["Random"].get_linestyle() == "--"
    for place, name in enumerate(reversed(order)):
        del methods[name]["srg"]
        methods[name]["r_srg"] = [1.0 - 0.1 * place] * 8
    assert shown_methods(methods) == ["salvage", "vit_shapley", "last_attention", "eigencam", "random", "gradcam"]


def test_figure_2_leaves_out_a_method_without_a_score(make_benchmark):
    """The mean of no value is NaN, which would make the order of the methods any."""
    _, results = make_benchmark()
    for place, name in enumerate(("rise", "salvage", "vit_shapley", "last_attention", "random")):
        results["methods"][name]["srg"] = [None] * 8 if name == "salvage" else [1.0 - 0.1 * place] * 8
    figure = report_figures.cardinality_curves({"Pets": results["methods"]})
    shown = [line.get_label() for line in figure.axes[0].get_lines()]
    assert shown == ["RISE", "ViT-Shapley", "Attn. last", "Random"]


def test_a_method_has_one_colour_in_all_panels(make_benchmark):
    _, pets = make_benchmark()
    _, cells = make_benchmark("cells", seed=1)
    for results, order in ((pets, ("salvage", "rise", "vit_shapley")), (cells, ("vit_shapley", "salvage", "rise"))):
        for name in METHODS:
            results["methods"][name]["srg"] = [0.9 - 0.1 * order.index(name) if name in order else 0.1] * 8
    figure = report_figures.cardinality_curves({"Pets": pets["methods"], "Cells": cells["methods"]})
    (legend,) = figure.legends
    lines = zip(legend.get_texts(), legend.get_lines(), strict=True)
    shown = {text.get_text(): line.get_color() for text, line in lines}
    assert set(shown) == {"Salvage", "RISE", "ViT-Shapley", "Attn. last", "Random"}
    for axis in figure.axes:
        assert {line.get_label(): line.get_color() for line in axis.get_lines()} == shown


def test_figure_6_is_the_mean_of_both_directions(make_benchmark):
    _, results = make_benchmark()
    figure = report_figures.sampling_likelihood({"Pets": results["methods"]})
    lines = {line.get_label(): line.get_ydata() for line in figure.axes[0].get_lines()}
    for label, method in (("guided", "salvage"), ("random", "random")):
        curves = results["methods"][method]["curves"]
        np.testing.assert_allclose(lines[label], (np.array(curves["r_lif"]) + curves["r_mif"]) / 2)


@pytest.mark.parametrize("exponents", [[4.0], []])
def test_figures_of_the_ablation(ablation, exponents):
    """Also of an ablation that has the paper's arms only."""
    _, content = ablation
    arms = arms_with(exponents)
    content = {**content, "exponents": exponents, "arms": {name: content["arms"][name] for name in arms}}
    figure3 = report_figures.ablation_bars({"Pets": content})
    figure7 = report_figures.ablation_course({"Pets": content})
    heights = [bar.get_height() for bar in figure3.axes[0].patches]
    expected = [100 * np.mean([np.mean(run["r_srg"]) for run in content["arms"][name].values()]) for name in arms]
    np.testing.assert_allclose(heights, expected)
    assert len({axis.get_ylim() for axis in figure7.axes}) == 1
    assert [axis.get_title() for axis in figure7.axes] == [f"Pets: {share}% of training" for share in (25, 50, 100)]
    for axis, step in zip(figure7.axes, (25, 50, 100), strict=True):
        expected = []
        for name in list(arms)[1:]:
            rows = [row for run in content["arms"][name].values() for row in run["history"] if row["step"] == step]
            expected.append(100 * np.mean([row["eval_srg"] for row in rows]))
        np.testing.assert_allclose([bar.get_height() for bar in axis.patches], expected)


def test_an_ablation_of_the_papers_arms_alone_is_shown():
    """A file from before there were other exponents; beside one that has them, the other arms are of that one alone."""
    card = read_ablation(Path(__file__).parents[2] / "model_cards" / "imagenette")
    assert list(card["arms"]) == list(arms_with([]))
    figure3, _ = ablation_sections({"ImageNette": card})
    bars = [bar.get_label() for bar in figure3.content.axes[0].containers]
    assert bars == ["ViT-Shapley (MSE)", "Salvage, uninformed", "Salvage, informed"]
    assert "exponent" not in figure3.text.lower()
    searched = {**card, "exponents": [8], "arms": {**card["arms"], "salvage-guided-8": card["arms"]["salvage-guided"]}}
    figure3, _ = ablation_sections({"before": card, "after": searched})
    assert [len(axis.containers) for axis in figure3.content.axes] == [3, 4]
    assert "3 x Salvage, exponent 8" in figure3.text
    assert "the informed arm's is 1" in figure3.text


@pytest.mark.usefixtures("undrawn")
def test_several_data_sets_side_by_side(make_benchmark, tmp_path):
    folders = [make_benchmark("Pets")[0], f"Blood/Cells={make_benchmark('cells', 1, regions=False, seed=1)[0]}"]
    write_report(ReportArguments(folders, [], str(tmp_path / "report")))
    rows = _table(tmp_path / "report" / "tables" / "table1.md")
    scores = ["Pets SRG ↑", "Pets R-SRG ↑", "Pets RMA ↑", "Pets RRA ↑", "Blood/Cells SRG ↑", "Blood/Cells R-SRG ↑"]
    assert rows[0][1:] == scores
    assert (tmp_path / "report" / "figures" / "figure1_Blood_Cells.png").is_file()


def test_error_messages(make_benchmark, tmp_path):
    with pytest.raises(ValueError, match="benchmarks or ablations are needed"):
        ReportArguments()
    with pytest.raises(ValueError, match=r"no results.json in .*nowhere': it is written by salvage benchmark"):
        write_report(ReportArguments([str(tmp_path / "nowhere")]))
    folder, _ = make_benchmark()
    with pytest.raises(ValueError, match="benchmarks: two have the same title"):
        write_report(ReportArguments([folder, folder]))
    with pytest.raises(ValueError, match="benchmarks: 'Pets=' is not FOLDER or TITLE=FOLDER, for example Pets=outputs"):
        write_report(ReportArguments(["Pets="]))


@pytest.mark.usefixtures("undrawn")
def test_a_report_that_cannot_be_written_leaves_the_earlier_files_as_they_were(make_benchmark, tmp_path):
    """Kills and full disks: at every change to the folder of the report."""
    folder, results = make_benchmark()
    report, states = tmp_path / "report", tmp_path / "states"
    write_report(ReportArguments([folder], [], str(report)))
    before = {path: path.read_bytes() for path in report.rglob("*.*") if path.is_file()}
    for entry in results["methods"].values():
        entry["srg"] = [1 - value for value in entry["srg"]]
    Path(folder, "results.json").write_text(json.dumps(results))
    copies = states_of_kills(lambda: write_report(ReportArguments([folder], [], str(report))), report, states)
    after = {path: path.read_bytes() for path in before if path.is_file()}
    assert after.keys() == before.keys()
    assert after != before
    assert len(copies) > 2 * len(before)
    for copy in copies:
        for path in before:
            assert (copy / path.relative_to(report)).read_bytes() in (before[path], after[path])


def _table(path: Path) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in path.read_text().splitlines()]
