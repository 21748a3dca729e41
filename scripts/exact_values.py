"""Compares maps with exact Shapley values, on images of at most 16 patches.

python scripts/exact_values.py --model_name_or_path CLASSIFIER --explainers salvage=DIR --validation_dir FOLDER
"""

from salvage_hf.cli import one_line_errors, parse_arguments
from salvage_hf.evaluation.exact import ExactArguments, exact_values_table, run_exact_values

if __name__ == "__main__":
    arguments = parse_arguments(ExactArguments, description=__doc__)
    with one_line_errors("exact_values.py"):
        print(exact_values_table(run_exact_values(*arguments)))
