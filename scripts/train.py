"""Trains a Salvage explainer against a frozen classifier.

accelerate launch scripts/train.py --model_name_or_path CLASSIFIER --train_dir FOLDER
"""

from salvage_hf.cli import one_line_errors, parse_arguments
from salvage_hf.training.explainer import ExplainerArguments, train_explainer

if __name__ == "__main__":
    arguments = parse_arguments(ExplainerArguments, description=__doc__)
    with one_line_errors("train.py"):
        train_explainer(*arguments)
