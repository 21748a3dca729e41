"""Reading earlier results: whatever the files hold, there is a report, or one sentence that names the file."""

import copy
import json
import os
import re
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from salvage_hf.evaluation import plots, report_figures
from salvage_hf.evaluation.reading import (
    earlier_ablation,
    earlier_results,
    read_ablation,
    read_benchmark,
    read_examples,
    read_maps,
    read_misclassified,
)
from salvage_hf.evaluation.report_sections import ablation_sections, benchmark_sections
from salvage_hf.evaluation.report_settings import ablation_origin, benchmark_origin
from salvage_hf.evaluation.report_summary import ablation_summary, benchmark_summary

#: How many damaged files are tried per property.
EXAMPLES = 3000 if os.environ.get("SALVAGE_LONG_TESTS") else 60
many = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

VALUES = st.sampled_from(
    [None, True, -1, 0, 2, 10**9, 0.5, float("nan"), float("inf"), "text", [], [None], [[1]], {}, {"a": 1}]
)


@pytest.fixture
def no_drawing(monkeypatch):
    """Drawing takes seconds; what is drawn is computed all the same."""
    for name in ("picture_grid", "curves", "bars", "matrices"):
        monkeypatch.setattr(plots, name, lambda *args, **options: object())
    monkeypatch.setattr(report_figures, "overlay", lambda *args, **options: Image.new("RGB", (1, 1)))


def places_in(content, place=()):
    """Where something stands in nested lists and dictionaries; of long lists the first two items."""
    parts = content.items() if isinstance(content, dict) else enumerate(content[:2]) if type(content) is list else ()
    for key, part in parts:
        yield (*place, key)
        yield from places_in(part, (*place, key))


def damaged(text: str, data: st.DataObject) -> bytes:
    """A JSON file with a part removed or replaced, cut off, or with another byte somewhere."""
    content, kind = json.loads(text), data.draw(st.sampled_from(["drop", "replace", "cut", "byte"]))
    if kind == "cut":
        return text[: data.draw(st.integers(0, len(text) - 2))].encode()
    if kind == "byte":
        changed = bytearray(text.encode())
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
        return bytes(changed)
    *way, last = data.draw(st.sampled_from(list(places_in(content))))
    parent = content
    for key in way:
        parent = parent[key]
    if kind == "drop":
        del parent[last]
    else:
        parent[last] = data.draw(VALUES)
    return json.dumps(content).encode()


def is_a_sentence_about(error: ValueError, name: str) -> bool:
    """Whether an error is one short line that names a file."""
    return bool(re.search(name, str(error))) and "\n" not in str(error) and len(str(error)) < 500


@many
@given(data=st.data())
def test_a_damaged_benchmark_gives_a_report_or_a_sentence(made_up, no_drawing, data):
    folder, text = made_up["benchmark"]
    path = folder / "results.json"
    path.write_bytes(damaged(text, data))
    try:
        benchmark = read_benchmark(folder)
        assert benchmark_sections({"Pets": benchmark})
        assert benchmark_summary("Pets", benchmark).answer
        assert benchmark_origin("Pets", benchmark).lists
    except ValueError as error:
        assert is_a_sentence_about(error, r"results\.json|\.safetensors")  # noqa: PT017  # a report is right too


@many
@given(data=st.data())
def test_a_damaged_ablation_gives_a_report_or_a_sentence(made_up, no_drawing, data):
    folder, text = made_up["ablation"]
    (folder / "ablation.json").write_bytes(damaged(text, data))
    try:
        ablation = read_ablation(folder)
        assert ablation_sections({"Pets": ablation})
        assert ablation_summary("Pets", ablation).answer
        assert ablation_origin("Pets", ablation, None).lists
    except ValueError as error:
        assert is_a_sentence_about(error, r"ablation\.json")  # noqa: PT017  # a report is right too


@many
@given(data=st.data())
def test_damaged_tensors_give_tensors_of_the_right_shape_or_a_sentence(made_up, data):
    folder, text = made_up["benchmark"]
    (folder / "results.json").write_text(text)
    benchmark = read_benchmark(folder)
    names = ("maps/salvage.safetensors", "examples.safetensors", "misclassified.safetensors")
    path = folder / data.draw(st.sampled_from(names))
    whole = path.read_bytes()
    changed = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(changed[: data.draw(st.sampled_from([len(changed), len(changed) // 2, 9, 0]))])
    try:
        assert read_maps(benchmark, "salvage").shape == (8, 4)
        assert read_examples(benchmark).shape == (2, 8, 8, 3)
        assert {name: values.shape[0] for name, values in read_misclassified(benchmark).items()}
    except ValueError as error:
        assert is_a_sentence_about(error, path.name)  # noqa: PT017  # whole tensors are right too
    finally:
        path.write_bytes(whole)


@pytest.fixture
def made_up(make_benchmark, ablation):
    """Name -> folder and whole text of a benchmark and an ablation."""
    benchmark = Path(make_benchmark()[0])
    return {
        "benchmark": (benchmark, (benchmark / "results.json").read_text()),
        "ablation": (Path(ablation[0]), (Path(ablation[0]) / "ablation.json").read_text()),
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("settings"), r"results\.settings is missing"),
        (lambda r: r.pop("classification"), r"results\.classification is missing"),
        (lambda r: r["methods"].update(rise=[]), r"results\.methods\.rise must be of type dict, got \[\]"),
        (lambda r: r["methods"]["rise"].update(srg=None), r"results\.methods\.rise\.srg must be of type list"),
        (lambda r: r["methods"]["rise"]["srg"].pop(), r"results\.methods\.rise\.srg must have 8 values, has 7"),
        (lambda r: r["methods"]["rise"]["curves"]["lif"].pop(), r"rise\.curves\.lif must have 4 values, has 3"),
        (lambda r: r["methods"].update(guess=r["methods"]["rise"]), r"methods\.guess is not a method; there are salv"),
        (lambda r: r["targets"].__setitem__(1, 7), r"results\.targets must be among 0\.\.2, has 7"),
        (lambda r: r["examples"].append(8), r"results\.examples must be among 0\.\.7, has 8"),
        (lambda r: r["classification"].pop("classifier"), r"results\.classification\.classifier is missing"),
        (lambda r: r["methods"].clear(), r"results\.json' holds no finished method: run salvage benchmark again"),
        (lambda r: r["methods"]["rise"]["srg"].__setitem__(3, float("nan")), r"srg\[3\] must be .* got nan"),
    ],
)
def test_what_is_wrong_in_results_is_said(made_up, change, message):
    folder, text = made_up["benchmark"]
    results = json.loads(text)
    change(results)
    (folder / "results.json").write_text(json.dumps(results))
    with pytest.raises(ValueError, match=message) as refused:
        read_benchmark(folder)
    assert is_a_sentence_about(refused.value, r"results\.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("exponents"), r"arms\.salvage-guided-4 is not an arm; there are .*, salvage-guided$"),
        (lambda a: a.update(exponents=[8.0]), r"arms\.salvage-guided-4 is not an arm; .*, salvage-guided-8$"),
        (lambda a: a.update(exponents=["4"]), r"ablation\.exponents\[0\] must be of type float, got '4'"),
        (lambda a: a["arms"].update(other={}), r"ablation\.arms\.other is not an arm; there are vit_shapley-uniform, "),
    ],
)
def test_what_is_wrong_in_an_ablation_is_said(made_up, change, message):
    folder, text = made_up["ablation"]
    ablation = json.loads(text)
    change(ablation)
    (folder / "ablation.json").write_text(json.dumps(ablation))
    with pytest.raises(ValueError, match=message) as refused:
        read_ablation(folder)
    assert is_a_sentence_about(refused.value, r"ablation\.json")


def test_maps_of_other_images_or_with_nan_are_refused(made_up):
    folder, _ = made_up["benchmark"]
    benchmark, path = read_benchmark(folder), folder / "maps" / "rise.safetensors"
    maps = load_file(path)["attributions"]
    save_file({"attributions": maps[:3].clone()}, path)
    with pytest.raises(ValueError, match=r"rise\.safetensors' holds attributions \[3, 4\] in place of \[8, 4\]: run"):
        read_maps(benchmark, "rise")
    maps[2, 1] = torch.nan
    save_file({"attributions": maps}, path)
    with pytest.raises(ValueError, match=r"rise\.safetensors' .* has values that are NaN or infinite"):
        read_maps(benchmark, "rise")
    path.unlink()
    with pytest.raises(ValueError, match=r"no rise\.safetensors in '.*maps': it is written by salvage benchmark"):
        read_maps(benchmark, "rise")


def test_missing_and_broken_files_are_reported_with_the_script_that_writes_them(tmp_path):
    for name, read in (("results.json", read_benchmark), ("ablation.json", read_ablation)):
        script = "salvage benchmark" if name == "results.json" else "salvage ablation"
        with pytest.raises(ValueError, match=rf"no {name} in '.*': it is written by {script}"):
            read(tmp_path)
        for wrong in (b'{"settings": ', b"", b"[]", b"\xff\xfe", b"[" * 100_000):
            (tmp_path / name).write_bytes(wrong)
            with pytest.raises(ValueError, match=rf"{name}' is not what {script} writes: "):
                read(tmp_path)


def test_other_settings_are_refused(made_up, tmp_path):
    folder, text = made_up["benchmark"]
    results = json.loads(text)
    measured = {name: results[name] for name in ("settings", "ids", "targets")}
    assert earlier_results(tmp_path, measured) is None
    assert earlier_results(folder, measured) == results
    other = copy.deepcopy(measured)
    other["settings"]["seed"] = 1
    with pytest.raises(ValueError, match=r"other settings: there {.*} on 8 images, here {.*'seed': 1} on 8; give"):
        earlier_results(folder, other)
    folder, text = made_up["ablation"]
    assert earlier_ablation(tmp_path, {"max_train_steps": 100}) is None
    assert earlier_ablation(folder, {"max_train_steps": 100}) == json.loads(text)
    with pytest.raises(ValueError, match=r"other arguments \(before, now\): {'max_train_steps': \(100, 8\)}; give"):
        earlier_ablation(folder, {"max_train_steps": 8})
