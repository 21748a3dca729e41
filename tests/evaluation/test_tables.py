"""Tables of scores, and the formats they are written in."""

import re

from hypothesis import given
from hypothesis import strategies as st

from salvage_hf.evaluation.tables import Cell, Table, score_table


def test_score_table():
    methods_of = {
        "Pet": {"a": {"srg": [0.1, 0.3], "rra": [None, 0.5]}, "b": {"srg": [0.1, 0.2]}},
        "WBC": {"b": {"srg": [1.0, 1.0]}},
    }
    table = score_table(methods_of, ("srg", "rra"), {"a": "A", "b": "B"})
    assert table.header == ["method", "Pet SRG ↑", "Pet RRA ↑", "WBC SRG ↑"]
    texts = [[cell.text for cell in row] for row in table.rows]
    assert texts == [["A", "20.0 ± 10.0", "50.0", "-"], ["B", "15.0 ± 5.0", "-", "100.0 ± 0.0"]]
    assert score_table({"Pet": {"a": {"mif": [0.5, 0.5]}}}, ("mif", "lif"), {"a": "A"}).header == ["method", "MIF ↓"]


def test_formats():
    table = Table(["name", "R-SRG ↑"], [[Cell("a_b"), Cell("1.0 ± 0.5", "best")], [Cell("c"), Cell("50%", "second")]])
    assert table.markdown().splitlines() == [
        "| name | R-SRG ↑ |",
        "|---|---|",
        "| a_b | **1.0 ± 0.5** |",
        "| c | <u>50%</u> |",
    ]
    assert table.latex().splitlines() == [
        "\\begin{tabular}{lr}",
        "\\toprule",
        "name & R-SRG $\\uparrow$ \\\\",
        "\\midrule",
        "a\\_b & \\textbf{1.0 $\\pm$ 0.5} \\\\",
        "c & \\underline{50\\%} \\\\",
        "\\bottomrule",
        "\\end{tabular}",
    ]


def test_rows_follow_the_titles_and_not_the_results():
    methods = {"a": {"srg": [0.1, 0.3]}, "b": {"srg": [0.1, 0.2]}}
    rows = score_table({"": methods}, ("srg",), {"b": "B", "a": "A", "c": "C"}).rows
    assert [[cell.text for cell in row] for row in rows] == [["B", "15.0 ± 5.0"], ["A", "20.0 ± 10.0"], ["C", "-"]]


def test_marks_stand_at_their_methods():
    good = [0.9 + 0.001 * (number % 3) for number in range(12)]
    methods = {"good": {"mif": [0.1] * 12, "srg": good}, "bad": {"mif": [0.5] * 12, "srg": [0.1] * 12}}
    table = score_table({"": methods}, ("srg", "mif"), {"bad": "Bad", "good": "Good"})
    assert [[cell.mark for cell in row] for row in table.rows] == [["", "second", "second"], ["", "best", "best"]]


def test_a_score_without_a_value_is_a_dash_and_leaves_the_others_as_they_are():
    """A region may be empty on every image; a single image has no standard error."""
    methods = {
        "none": {"rra": [None] * 12},
        "one": {"rra": [0.5, *[None] * 11]},
        "all": {"rra": [0.9 + 0.001 * (number % 3) for number in range(12)]},
        "worse": {"rra": [0.1 + 0.001 * (number % 3) for number in range(12)]},
    }
    table = score_table({"": methods}, ("rra",), {name: name for name in methods})
    assert [row[1].text for row in table.rows] == ["-", "50.0", "90.1 ± 0.0", "10.1 ± 0.0"]
    assert [row[1].mark for row in table.rows] == ["", "", "best", "second"]


@given(text=st.text(st.sampled_from("a|&%$#_{}~^\\±↑ "), max_size=12))
def test_titles_stay_within_their_cell(text):
    """Data sets are named by users: no character may end a cell or begin a formula."""
    table = Table(["method", text], [[Cell("a"), Cell(text, "best")]])
    for line in table.markdown().splitlines():
        assert len(re.findall(r"(?<!\\)\|", line)) == 3
    for line in table.latex().splitlines()[2::2][:2]:
        assert len(re.findall(r"(?<!\\)&", line)) == 1
        assert len(re.findall(r"(?<!\\)\$", line)) == 2 * (text.count("±") + text.count("↑"))
        assert re.search(r"(?<!\\)[#~^%]", line) is None
