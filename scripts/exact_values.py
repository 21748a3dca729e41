"""Compares maps with exact Shapley values: `salvage exact-values`.

python scripts/exact_values.py --help
"""

import sys

from salvage_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["exact-values", *sys.argv[1:]]))
