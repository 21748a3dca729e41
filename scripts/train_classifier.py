"""Fine-tunes a classifier, and draws how it answers to partial images.

accelerate launch scripts/train_classifier.py --model_name_or_path BACKBONE --train_dir FOLDER [--mask_patches]
"""

from salvage_hf.cli import one_line_errors, parse_arguments
from salvage_hf.evaluation.partial_images import DescribedClassifierTask
from salvage_hf.training.classifier import ClassifierArguments, train_classifier

if __name__ == "__main__":
    arguments = parse_arguments(ClassifierArguments, description=__doc__)
    with one_line_errors("train_classifier.py"):
        train_classifier(*arguments, task=DescribedClassifierTask)
