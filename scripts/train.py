"""Trains a Salvage explainer against a frozen classifier.

accelerate launch scripts/train.py --model_name_or_path CLASSIFIER --train_dir FOLDER
"""

from transformers import HfArgumentParser

from salvage_hf.training.explainer import ExplainerArguments, train_explainer

if __name__ == "__main__":
    train_explainer(HfArgumentParser(ExplainerArguments, description=__doc__).parse_args_into_dataclasses()[0])
