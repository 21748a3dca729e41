"""Fine-tunes a classifier.

accelerate launch scripts/train_classifier.py --model_name_or_path BACKBONE --train_dir FOLDER [--mask_patches]
"""

from transformers import HfArgumentParser

from salvage_hf.training.classifier import ClassifierArguments, train_classifier

if __name__ == "__main__":
    train_classifier(HfArgumentParser(ClassifierArguments, description=__doc__).parse_args_into_dataclasses()[0])
