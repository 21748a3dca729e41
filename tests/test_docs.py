"""The pages in docs/: they build, lead somewhere, run, and quote the library's own sentences."""

import ast
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from browser import assert_fits, chromium
from documented import ROOT, blocks_of, run_documents

from salvage_hf.commands import COMMANDS

DOCS = ROOT / "docs"
PAGES = {page.name: page.read_text() for page in sorted(DOCS.glob("*.md"))}
READABLE = {**PAGES, "README.md": (ROOT / "README.md").read_text()}
LIBRARY = [file for folder in ("salvage_hf", "modeling") for file in (ROOT / folder).rglob("*.py")]
REPOSITORY = "https://github.com/org/salvage-hf/blob/main/"


def navigation(node):
    """The files that a part of `nav` in mkdocs.yml names, in its order."""
    if isinstance(node, str):
        return [node]
    return [file for part in (node.values() if isinstance(node, dict) else node) for file in navigation(part)]


def anchors(text):
    """What the headings of a page are called in addresses, by GitHub and by MkDocs for plain headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), flags=re.MULTILINE)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}


def links(text):
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def test_every_page_is_in_the_navigation_once():
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert sorted(navigation(config["nav"])) == sorted(PAGES)


@pytest.mark.parametrize("name", READABLE)
def test_links_lead_somewhere(name):
    """To a page and a heading of it, or to a file of the repository; other addresses are not asked for."""
    here = DOCS if name in PAGES else ROOT
    for link in links(READABLE[name]):
        address, _, heading = link.partition("#")
        file = ROOT / address.removeprefix(REPOSITORY) if address.startswith(REPOSITORY) else here / (address or name)
        if not address.startswith(("https://", "http://")) or address.startswith(REPOSITORY):
            assert file.is_file(), link
            assert not heading or heading in anchors(file.read_text()), link


def test_pages_lead_out_of_docs_by_addresses():
    """A relative link to a file outside docs/ would lead nowhere on the site."""
    assert not [(name, link) for name, text in PAGES.items() for link in links(text) if link.startswith("..")]


def test_the_python_of_the_pages_runs(tiny_classifier, salvage_model, save_processor, tmp_path):
    codes = {name: "\n".join(found) for name, text in PAGES.items() if (found := blocks_of(text, "python"))}
    assert {"quickstart.md", "explain.md", "methods.md", "metrics.md", "partial_images.md"} <= set(codes)
    checks = {
        "quickstart.md": "assert explanation.attributions.shape == (16, len(explanation.labels))",
        "explain.md": "assert len(maps) == 2 and explanation.effects.shape == explanation.attributions.shape",
        "methods.md": "assert refined.attributions.shape == attributions.shape == (2, 16)",
        "metrics.md": "assert results['num_forwards'] <= 2 * 160",
    }
    codes = {name: f"{code}\n{checks.get(name, '')}" for name, code in codes.items()}
    models = {"dinov2-pet": tiny_classifier(), "salvage-pet": salvage_model()}
    run_documents(codes, tmp_path, models, save_processor)


def commands(text):
    """The command lines of `salvage` in a page: name -> the options that are given."""
    for block in blocks_of(text, "bash"):
        for line in re.sub(r"\\\n", " ", block).splitlines():
            if found := re.match(r"\s*salvage (\S+)(.*)", line):
                yield found[1], re.findall(r" --([a-z_]+)", found[2].partition(" #")[0])


@pytest.mark.parametrize("name", READABLE)
def test_commands_have_the_options_that_they_are_given(name):
    """By the name of the field that holds an option, anywhere in the library: a typing error is in no file."""
    words = set(re.findall(r"\w+", " ".join(file.read_text() for file in LIBRARY)))
    for command, options in commands(READABLE[name]):
        assert command in COMMANDS
        assert set(options) <= words, command


def sentences():
    """Every text of the library, in which `…` stands for what is filled in."""
    for file in LIBRARY:
        for node in ast.walk(ast.parse(file.read_text())):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in parts)


def test_troubleshooting_quotes_the_library():
    quoted = [line for block in blocks_of(PAGES["troubleshooting.md"], "text") for line in block.splitlines()]
    assert len(quoted) >= 15
    known = "\n".join(sentences())
    assert [line for line in quoted if line not in known] == []


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site, built with warnings as errors."""
    for module in ("mkdocs", "material", "mkdocstrings_handlers.python", "latex2mathml"):
        if importlib.util.find_spec(module.partition(".")[0]) is None:
            pytest.skip(f"{module} is missing: pip install 'salvage-hf[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def built(site, name):
    """The page of the site that a file of docs/ became."""
    return site / ("" if name == "index.md" else Path(name).stem) / "index.html"


def test_the_site_has_its_formulas_and_pictures(site):
    for name in PAGES:
        assert "arithmatex" not in built(site, name).read_text()  # formulas are MathML, which needs no script
    assert (site / "model_cards" / "imagenette" / "gas_pump.png").is_file()
    assert "<math" in built(site, "mathematics.md").read_text()
    assert "data:image/png" in built(site, "notebook.md").read_text()


def test_no_page_scrolls_sideways(site):
    with chromium() as browser:
        page = browser.new_page(java_script_enabled=False)  # the theme's takes most of the time
        for name in PAGES:
            page.goto(built(site, name).as_uri())
            assert page.evaluate("[...document.images].every(one => one.naturalWidth > 0)"), name
            for width in (390, 1280):
                page.set_viewport_size({"width": width, "height": 844})
                assert_fits(page)


def test_the_notebook_shows_what_came_out():
    """And nothing of the machine that it ran on. That it still runs, `make docs` shows."""
    cells = [cell for cell in json.loads((DOCS / "notebook.ipynb").read_text())["cells"] if cell["cell_type"] == "code"]
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert all(output["output_type"] != "error" and output.get("name") != "stderr" for output in outputs)
