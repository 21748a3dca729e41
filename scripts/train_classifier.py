"""Fine-tunes a classifier: `salvage train-classifier`.

accelerate launch scripts/train_classifier.py --help
"""

import sys

from salvage_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["train-classifier", *sys.argv[1:]]))
