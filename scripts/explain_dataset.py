"""Explains every image of a data set: `salvage explain-dataset`.

accelerate launch scripts/explain_dataset.py --help
"""

import sys

from salvage_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["explain-dataset", *sys.argv[1:]]))
