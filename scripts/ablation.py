"""Trains and scores the arms of the paper's ablations: `salvage ablation`.

accelerate launch scripts/ablation.py --help
"""

import sys

from salvage_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["ablation", *sys.argv[1:]]))
