"""Cost, scores and needs of every method: docs/methods.md is written by this test, which fails where both differ.

`python -m pytest tests/test_methods_table.py --write-table` writes the table anew.
"""

import json
import math
import re

import torch
from documented import ROOT, check_written

from salvage_hf.attribution_methods import REGISTRY
from salvage_hf.faithfulness import mean_and_stderr

PAGE = ROOT / "docs" / "methods.md"
BEGIN, END = "<!-- written by tests/test_methods_table.py -->\n", "<!-- until here -->\n"
#: The results that the card of ImageNette reports; the second file has methods that the first has not.
RESULTS = [ROOT / "model_cards" / "imagenette" / name for name in ("results.json", "results_cpu.json")]
EARLIER = "(1)"


def cell(scores: list[float | None]) -> str:
    """Mean ± standard error in percent, over the images that were scored."""
    mean, stderr = mean_and_stderr(torch.tensor([score for score in scores if score is not None], dtype=torch.float64))
    return f"{100 * mean:.1f} ± {100 * stderr:.1f}"


def row(name: str, results: list[dict]) -> tuple[float, str]:
    """A method's SRG, by which rows are sorted, and its row."""
    info = REGISTRY[name]
    needs = f"an explainer ({info.objective})" if info.objective else info.needs
    begin = f"| `{name}` | {info.title} {{mark}}| {needs} |"
    for number, measured in enumerate(results):
        if entry := measured["methods"].get(name):
            mark = f"{EARLIER} " if number else ""
            seconds = "" if number else f"{1000 * entry['seconds']:.1f}"
            scores = f"{cell(entry['srg'])} | {cell(entry['r_srg'])}"
            return sum(entry["srg"]) / len(entry["srg"]), (
                f"{begin.format(mark=mark)} {scores} | {entry['forwards']:,.1f} | {seconds} | {info.source} |"
            )
    return -math.inf, f"{begin.format(mark='')} not measured | not measured | | | {info.source} |"


def table() -> str:
    results = [json.loads(file.read_text()) for file in RESULTS]
    budget = {entry["methods"]["rise"]["made_with"]["budget"] for entry in results}
    lines = [
        "| `method=` | title | needs | SRG ↑ | R-SRG ↑ | forwards | ms | source |",
        "|---|---|---|---|---|---|---|---|",
        *(line for _, line in sorted((row(name, results) for name in REGISTRY), key=lambda pair: -pair[0])),
        "",
        f"{EARLIER} of an earlier run on a CPU, which scored the same photographs, R-SRG of 100 of them. Methods with",
        f"a budget had {budget.pop():,} subsets for each map; as hidden patches cost nothing, these are about half as",
        "many forwards. Salvage's and ViT-Shapley's maps are of all ten classes, the others' of one.",
    ]
    assert not budget
    return "\n".join(lines) + "\n"


def test_the_table_is_that_of_the_page(request):
    write = request.config.getoption("--write-table")
    check_written(PAGE, table(), BEGIN, END, write, "tests/test_methods_table.py")


def test_the_cells_are_those_of_the_card():
    """The card's table was made by the report."""
    card = (RESULTS[0].parent / "README.md").read_text()
    rows = [line.split(" | ") for line in table().splitlines()[2:] if "±" in line and EARLIER not in line]
    assert len(rows) == 17
    for _, title, _, *scores in rows:
        of_card = next(line for line in card.splitlines() if line.startswith(f"| {title} | ") and "±" in line)
        assert re.sub(r"\*|</?u>", "", of_card).split(" | ")[1:3] == scores[:2]
