"""Compares attribution methods: `salvage benchmark`.

accelerate launch scripts/benchmark.py --help
"""

import sys

from salvage_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["benchmark", *sys.argv[1:]]))
