"""Trains a Salvage explainer against a frozen classifier: `salvage train`.

accelerate launch scripts/train.py --help
"""

import sys

from salvage_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
