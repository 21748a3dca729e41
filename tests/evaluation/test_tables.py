"""Tables of scores, and the formats they are written in."""

from salvage_hf.evaluation.tables import Cell, Table, score_table


def test_score_table():
    methods_of = {
        "Pet": {"a": {"srg": [0.1, 0.3], "rra": [None, 0.5]}, "b": {"srg": [0.1, 0.2]}},
        "WBC": {"b": {"srg": [1.0, 1.0]}},
    }
    table = score_table(methods_of, ("srg", "rra"), {"a": "A", "b": "B"})
    assert table.header == ["method", "Pet SRG ↑", "Pet RRA ↑", "WBC SRG ↑"]
    texts = [[cell.text for cell in row] for row in table.rows]
    assert texts == [["A", "20.0 ± 10.0", "50.0 ± nan", "-"], ["B", "15.0 ± 5.0", "-", "100.0 ± 0.0"]]
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
