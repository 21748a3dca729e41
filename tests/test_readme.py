"""The README's Python runs as it stands, and the methods that it and the pages name exist."""

import re

import pytest
from documented import ROOT, blocks_of, run_documents

from salvage_hf import attribution_methods

README = (ROOT / "README.md").read_text()
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_python_of_the_readme_runs(tiny_classifier, salvage_model, save_processor, tmp_path):
    blocks = blocks_of(README, "python")
    assert len(blocks) == 2
    checks = """
assert explanation.attributions.shape == (16, len(explanation.labels))
assert out.attributions.shape == (1, 16, 3)
"""
    models = {"dinov2-pet": tiny_classifier(), "salvage-pet": salvage_model()}
    run_documents({"README.md": "".join(blocks) + checks}, tmp_path, models, save_processor)


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: file.name)
def test_named_methods_exist(file):
    for names in re.findall(r"--methods ([a-z_ ]+)", file.read_text()):
        assert set(names.split()) <= set(attribution_methods.REGISTRY)
