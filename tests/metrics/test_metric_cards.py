"""A metric's folder holds what its Space needs, and the examples of its card run."""

import doctest
import re

import pytest
import yaml

from salvage_hf.evaluate_modules.registration import metric_scripts
from salvage_hf.evaluation.scores import SCORES

SCRIPTS = metric_scripts()


def test_every_score_has_its_metric():
    assert sorted(SCRIPTS) == sorted(SCORES)


@pytest.mark.parametrize("name", SCRIPTS)
def test_folder(name):
    files = {path.name for path in SCRIPTS[name].parent.iterdir() if path.name != "__pycache__"}
    assert files == {f"{name}.py", "README.md", "app.py", "requirements.txt"}


@pytest.mark.parametrize("name", SCRIPTS)
def test_front_matter(name):
    gradio = pytest.importorskip("gradio")
    text = SCRIPTS[name].with_name("README.md").read_text(encoding="utf-8")
    settings = yaml.safe_load(text.split("---")[1])
    assert settings["sdk"] == "gradio"
    assert settings["sdk_version"].split(".")[0] == gradio.__version__.split(".")[0]
    assert settings["app_file"] == "app.py"
    assert settings["pinned"] is False
    assert settings["tags"] == ["evaluate", "metric"]
    assert len(settings["emoji"]) <= 2
    assert settings["title"] == SCORES[name].title
    assert settings["description"].startswith(settings["title"])


@pytest.mark.parametrize("name", SCRIPTS)
def test_examples_of_the_card(name):
    text = SCRIPTS[name].with_name("README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    test = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, name, "README.md", 0)
    for loader in ("evaluate.load", "salvage_hf.load_metric"):
        assert any(f'{loader}("{name}")' in example.source for example in test.examples)
    report: list[str] = []
    failed, _ = doctest.DocTestRunner(verbose=False).run(test, out=report.append)
    assert failed == 0, "".join(report)


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_card_says_which_values_are_better(name):
    direction = "higher" if SCORES[name].higher_is_better else "lower"
    text = SCRIPTS[name].with_name("README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\b(higher|lower)\s+is\s+better", text)) == {direction}
