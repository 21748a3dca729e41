"""The names of the commands of `salvage`, and what it answers without one: the overview, the version."""

import sys

from .tensors import meant
from .version import VERSION

#: Every command and what it does, in the order of the overview. It is run by the function of its name in
#: cli.py (with "_" for "-").
COMMANDS = {
    "demo": "run the whole method on a small data set that it generates; takes minutes (--fast: one or two)",
    "explain": "explain images by any classifier or explainer: pictures, numbers, a page",
    "train-classifier": "fine-tune a classifier, with --mask_patches on partial images",
    "train": "train an explainer of a classifier",
    "doctor": "check a classifier and its explainer on a few labelled images; status 1 where something is bad",
    "explain-dataset": "explain every image of a data set, as a data set of parquet files",
    "benchmark": "compare attribution methods by their scores",
    "budget-curve": "draw the scores of methods over the number of forwards per image",
    "exact-values": "compare maps with exact Shapley values, on images of at most 16 patches",
    "ablation": "train and score the arms of the paper's ablations",
    "report": "make tables, figures and a page from finished benchmarks and ablations",
    "app": "open a page to drop pictures on, look at their maps and hide patches",
    "push": "upload an explainer or classifier that was trained earlier, with its card",
    "card": "write the card of an explainer from its recipe and its benchmarks",
    "push-app": "upload the app as a Space, which shows a model of the Hub",
    "push-metrics": "upload the metrics' Spaces",
    "install-metrics": "make evaluate.load find the metrics without importing salvage_hf",
}

_ROWS = "\n".join(f"  {name:<18}{what}" for name, what in COMMANDS.items())
OVERVIEW = f"""usage: salvage COMMAND [ARGUMENT...]

Faithful explanations of image classifiers: Shapley values of every patch for every class, in one forward pass.

{_ROWS}

salvage COMMAND --help lists the arguments of a command, salvage --version prints the version.
To see it all on two CPU cores: salvage demo --fast
With several GPUs: accelerate launch -m salvage_hf COMMAND [ARGUMENT...]"""


def command_of(words: list[str]) -> tuple[str, list[str]]:
    """The command of a command line, and its arguments.

    Raises:
        SystemExit: with status 0 where overview or version were asked for and are printed, with 2 where there is no
            such command.
    """
    name, *arguments = words or ["--help"]
    if name in COMMANDS:
        return name, arguments
    if name in ("-h", "--help"):
        print(OVERVIEW)
        raise SystemExit(0)
    if name == "--version":
        print(f"salvage {VERSION}")
        raise SystemExit(0)
    print(f"salvage: {name!r} is not one of {', '.join(COMMANDS)}{meant(name, COMMANDS)}", file=sys.stderr)
    raise SystemExit(2)
