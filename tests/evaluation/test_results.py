"""What the files of a benchmark hold."""

import torch
import transformers

from salvage_hf.attribution_methods import REGISTRY
from salvage_hf.evaluation.results import measured_on, method_entry, method_titles


def test_an_entry_leaves_out_what_was_not_asked_for():
    nan = float("nan")
    rows = {
        "attributions": torch.rand(2, 2),
        "srg": torch.tensor([0.25, nan]),
        "lif": torch.tensor([0.5, nan]),
        "mif": torch.tensor([0.25, nan]),
        "lif_curve": torch.tensor([[0.25, 0.75], [nan, nan]]),
        "mif_curve": torch.tensor([[0.0, 0.5], [nan, nan]]),
        "forwards": torch.tensor([3.0, 3.0]),
        "seconds": torch.tensor([1.0, 2.0]),
    }
    assert method_entry(rows, {"budget": 8}, measured_on(torch.device("cpu"))) == {
        "srg": [0.25, None],
        "lif": [0.5, None],
        "mif": [0.25, None],
        "curves": {"lif": [0.25, 0.75], "mif": [0.0, 0.5]},
        "forwards": 3.0,
        "seconds": 1.5,
        "made_with": {"budget": 8},
        "measured_on": {"device": "cpu", "torch": torch.__version__, "transformers": transformers.__version__},
    }


def test_titles_come_in_the_order_of_the_registry():
    assert list(method_titles(reversed(REGISTRY))) == list(REGISTRY)
    assert method_titles(["random", "salvage"]) == {"salvage": "Salvage", "random": "Random"}
