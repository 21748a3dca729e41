"""Loading metrics by name: in this process, and in fresh ones that start elsewhere."""

import os
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType

import pytest
from fresh_processes import run_fresh

from salvage_hf.evaluate_modules import registration


def run(code, tmp_path):
    """Runs code in a fresh process, in another working directory and with caches of its own."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    caches = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HOME": str(tmp_path / "home")}
    return run_fresh(code, elsewhere, HF_EVALUATE_OFFLINE="1", **caches)


RRA = "compute(predictions=[[1.0, 0.0, 0.0, 0.0]], masks=[[[True, False], [False, False]]])['rra']"


def test_registered_before_evaluate_is_imported(tmp_path):
    code = f"""
import sys
from salvage_hf.evaluate_modules import registration
registration.register()
registration.register()
assert "evaluate" not in sys.modules, "evaluate was imported"
import evaluate
print(evaluate.load("rra").{RRA}, sys.meta_path)
"""
    output = run(code, tmp_path)
    assert output.startswith("1.0 ")
    assert "_PatchesLoading" not in output  # it has done its work and left


def test_registered_after_evaluate_is_imported(tmp_path):
    code = f"""
import evaluate
from salvage_hf.evaluate_modules import registration
registration.register()
print(evaluate.load("rra").{RRA})
"""
    assert run(code, tmp_path) == "1.0\n"


def test_load_metric_needs_neither_the_hook_nor_the_module_cache(tmp_path):
    code = f"""
import sys
import salvage_hf
sys.meta_path = [finder for finder in sys.meta_path if type(finder).__name__ != "_PatchesLoading"]
metric = salvage_hf.load_metric("rra", keep_in_memory=True)
print(metric.{RRA})
import evaluate
try:
    evaluate.load("rra")
except FileNotFoundError:
    print("evaluate does not know the name")
"""
    assert run(code, tmp_path) == "1.0\nevaluate does not know the name\n"


def test_load_metric_refuses_a_name_that_it_does_not_know():
    with pytest.raises(ValueError, match=r"name must be one of lif, mif, .* srg, got 'accuracy'"):
        registration.load_metric("accuracy")


def test_seeded_module_cache_serves_a_process_that_does_not_import_us(tmp_path, monkeypatch):
    import evaluate

    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", tmp_path / "modules")
    assert registration.seed_module_cache() == list(registration.metric_scripts())
    cache = tmp_path / "modules" / "evaluate_modules" / "metrics"
    assert {folder.name for folder in cache.glob("*--*") if folder.is_dir()} == {
        f"evaluate-metric--{name}" for name in registration.metric_scripts()
    }
    (script,) = cache.glob("evaluate-metric--rra/*/rra.py")
    os.utime(script, (0, 0))
    old = script.parents[1] / ("0" * 64) / "rra.py"
    old.parent.mkdir()
    old.write_text("raise RuntimeError('an old version was loaded')")
    os.utime(old, (1, 1))
    registration.seed_module_cache()  # makes the present version the newest again
    assert run(f"import evaluate; print(evaluate.load('rra').{RRA})", tmp_path) == "1.0\n"


def loading_stub(calls):
    """A stand-in for evaluate.loading: its factory notes what it is asked for."""
    module = ModuleType("evaluate.loading")
    module.evaluation_module_factory = lambda path, *args, **kwargs: calls.append((path, args, kwargs))
    return module


def test_only_our_names_are_resolved_and_only_once(tmp_path, monkeypatch):
    calls = []
    loading = loading_stub(calls)
    monkeypatch.setitem(sys.modules, "evaluate.loading", loading)
    registration.register()
    patched = loading.evaluation_module_factory
    registration.register()
    assert loading.evaluation_module_factory is patched
    monkeypatch.chdir(tmp_path)
    for path in ("r_srg", "accuracy", "someone/r_srg", "./r_srg"):
        patched(path, module_type="metric")
    script = registration.metric_scripts()["r_srg"]
    assert [call[0] for call in calls] == [str(script), "accuracy", "someone/r_srg", "./r_srg"]
    assert calls[0] == (str(script), (), {"module_type": "metric"})
    Path("r_srg").mkdir()
    Path("r_srg", "r_srg.py").touch()
    patched("r_srg")  # a folder of that name in the working directory comes first
    assert calls[-1][0] == "r_srg"


def test_finder_leaves_other_modules_alone():
    finder = registration._PatchesLoading()
    assert finder.find_spec("evaluate", None) is None
    assert finder.find_spec("evaluate.loading", ["/no/such/folder"]) is None


def test_finder_survives_a_look_that_does_not_import(monkeypatch, tmp_path):
    (tmp_path / "loading.py").write_text("def evaluation_module_factory(path): return path\n")
    finder = registration._PatchesLoading()
    monkeypatch.setattr(sys, "meta_path", [finder, PathFinder])
    finder.find_spec("evaluate.loading", [str(tmp_path)])
    assert finder in sys.meta_path
    spec = finder.find_spec("evaluate.loading", [str(tmp_path)])
    module = ModuleType("evaluate.loading")
    spec.loader.exec_module(module)
    assert finder not in sys.meta_path
    assert module.evaluation_module_factory("rra") == str(registration.metric_scripts()["rra"])


@pytest.mark.parametrize("name", registration.metric_scripts())
def test_scripts(name):
    script = registration.metric_scripts()[name]
    assert script.is_file()
    assert (script.stem, script.parent.name, script.parents[1].name) == (name, name, "metrics")
