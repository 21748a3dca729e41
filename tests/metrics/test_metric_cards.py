"""A metric's folder is what its Space holds, and the examples of its card run."""

import doctest
import re

import pytest
import yaml

from salvage_hf.metric_registration import metric_scripts

SCRIPTS = metric_scripts()


def test_the_eight_metrics():
    assert sorted(SCRIPTS) == ["lif", "mif", "r_lif", "r_mif", "r_srg", "rma", "rra", "srg"]


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
    assert settings["title"].lower().replace("-", "_") == name
    assert settings["description"].startswith(settings["title"])


@pytest.mark.parametrize("name", SCRIPTS)
def test_examples_of_the_card(name):
    text = SCRIPTS[name].with_name("README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    test = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, name, "README.md", 0)
    assert any(f'evaluate.load("{name}")' in example.source for example in test.examples)
    report: list[str] = []
    failed, _ = doctest.DocTestRunner(verbose=False).run(test, out=report.append)
    assert failed == 0, "".join(report)
