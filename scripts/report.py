"""Makes tables, figures and a page from finished benchmarks and ablations: `salvage report`.

python scripts/report.py --help
"""

import sys

from salvage_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["report", *sys.argv[1:]]))
