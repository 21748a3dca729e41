"""The registry of scores: it is complete, and a new entry is all that a score needs besides its computation."""

from pathlib import Path

import pytest
import torch

from salvage_hf.evaluation.results import method_entry
from salvage_hf.evaluation.scores import SCORES, TABLES, Score, scores_of_family, scores_of_table
from salvage_hf.evaluation.scoring import score_batch
from salvage_hf.evaluation.tables import results_table
from salvage_hf.faithfulness import rank_scores, relative_scores


def test_every_score_has_a_metric_and_the_other_way_round():
    folders = (Path(__file__).parents[2] / "metrics").glob("*/*.py")
    assert {path.stem for path in folders if path.stem == path.parent.name} == set(SCORES)


def test_families_and_tables_hold_every_score_once():
    families = [score.name for family in ("rank", "relative", "region") for score in scores_of_family(family)]
    tables = [score.name for table in TABLES for score in scores_of_table(table)]
    assert sorted(families) == sorted(tables) == sorted(SCORES)
    assert [score.name for score in scores_of_table("table1")] == ["srg", "r_srg", "rma", "rra"]
    assert SCORES["r_mif"].heading == "R-MIF ↓"


@pytest.mark.parametrize(("family", "compute"), [("rank", rank_scores), ("relative", relative_scores)])
def test_what_is_kept_is_what_the_algorithms_give(family, compute):
    def v(pixel_values, subsets):
        share = subsets.float().mean(dim=-1)
        return torch.stack([share, 1 - share], dim=-1)

    maps = torch.rand(2, 4, generator=torch.Generator().manual_seed(0))
    scores = compute(v, torch.rand(2, 1, 4, 4), maps, torch.tensor([0, 1]))
    for score in scores_of_family(family):
        for column in score.kept:
            assert getattr(scores, column).shape == ((2, 4) if score.has_curve and column != score.name else (2,))
        if score.terms:
            first, second = (getattr(scores, term) for term in score.terms)
            torch.testing.assert_close(getattr(scores, score.name), first - second)


def test_a_new_entry_is_computed_kept_and_tabulated(monkeypatch, tiny_classifier, images):
    """For a score of regions; those of the two algorithms are covered by the test above."""
    from salvage_hf import MaskedClassifier
    from salvage_hf.evaluation.arguments import BenchmarkArguments

    def largest_inside(maps, masks):
        return torch.where(masks, maps, -torch.inf).amax(dim=(1, 2))

    monkeypatch.setitem(
        SCORES,
        "largest",
        Score("largest", "Largest", False, "region", "table1", "The largest value inside.", of_region=largest_inside),
    )
    masks = torch.zeros(2, 16, 16, dtype=torch.bool)
    masks[:, :8] = True
    batch = {"pixel_values": images(2), "labels": torch.tensor([0, 1]), "ids": torch.tensor([5, 6]), "masks": masks}
    maps = torch.rand(2, 16, generator=torch.Generator().manual_seed(0))
    nothing = torch.tensor([], dtype=torch.int64)
    args = BenchmarkArguments(model_name_or_path="any", validation_dir="any", methods=["random"])
    asked = {"rank": nothing, "relative": nothing}
    rows = score_batch(MaskedClassifier(tiny_classifier()), maps, batch, asked, args)
    assert rows.keys() == {"attributions", "rma", "rra", "largest"}
    entry = method_entry({**rows, "forwards": torch.ones(2), "seconds": torch.ones(2)}, {}, {})
    assert len(entry["largest"]) == 2
    assert results_table({"methods": {"random": entry}}, ["largest"]).startswith("| method | Largest ↓ |")
