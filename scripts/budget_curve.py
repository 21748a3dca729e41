"""Scores of attribution methods over the number of forwards per image: `salvage budget-curve`.

accelerate launch scripts/budget_curve.py --help
"""

import sys

from salvage_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["budget-curve", *sys.argv[1:]]))
