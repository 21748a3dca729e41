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
#: The results that the card of ImageNette reports first.
RESULTS = ROOT / "model_cards" / "imagenette" / "results_224.json"


def cell(scores: list[float | None]) -> str:
    """Mean ± standard error in percent, over the images that were scored."""
    mean, stderr = mean_and_stderr(torch.tensor([score for score in scores if score is not None], dtype=torch.float64))
    return f"{100 * mean:.1f} ± {100 * stderr:.1f}"


def row(name: str, results: dict) -> tuple[float, str]:
    """A method's SRG, by which rows are sorted, and its row."""
    info = REGISTRY[name]
    needs = f"an explainer ({info.objective})" if info.objective else info.needs
    srg, measured = -math.inf, "not measured | not measured | | "
    if entry := results["methods"].get(name):
        srg = sum(entry["srg"]) / len(entry["srg"])
        measured = (
            f"{cell(entry['srg'])} | {cell(entry['r_srg'])} | {entry['forwards']:,.1f} | {1000 * entry['seconds']:.1f}"
        )
    return srg, f"| `{name}` | {info.title} | {needs} | {measured} | {info.source} |"


def table() -> str:
    results = json.loads(RESULTS.read_text())
    made_with = [entry["made_with"] for entry in results["methods"].values()]
    (budget,) = {options["budget"] for options in made_with if "budget" in options}
    lines = [
        "| `method=` | title | needs | SRG ↑ | R-SRG ↑ | forwards | ms | source |",
        "|---|---|---|---|---|---|---|---|",
        *(line for _, line in sorted((row(name, results) for name in REGISTRY), key=lambda pair: -pair[0])),
        "",
        f"Methods with a budget had {budget:,} subsets for each map; as hidden patches cost nothing, these are about",
        "half as many forwards. Salvage's and ViT-Shapley's maps are of all ten classes, the others' of one.",
    ]
    return "\n".join(lines) + "\n"


def test_the_table_is_that_of_the_page(request):
    write = request.config.getoption("--write-table")
    check_written(PAGE, table(), BEGIN, END, write, "tests/test_methods_table.py")


def test_the_cells_are_those_of_the_card():
    """The card's first table was made by the report."""
    card = (RESULTS.parent / "README.md").read_text()
    rows = [line.split(" | ") for line in table().splitlines()[2:] if "±" in line]
    assert len(rows) == 19
    for _, title, _, *scores in rows:
        of_card = next(line for line in card.splitlines() if line.startswith(f"| {title} | ") and "±" in line)
        assert re.sub(r"\*|</?u>", "", of_card).split(" | ")[1:3] == scores[:2]
