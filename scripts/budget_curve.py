"""Scores of attribution methods over the number of forwards per image: tables, and budget_curve.png.

accelerate launch scripts/budget_curve.py --model_name_or_path CLASSIFIER --explainers salvage=DIR \
    --validation_dir FOLDER --methods salvage salvage_refined rise kernelshap svarm --budget 160
"""

from accelerate import PartialState

from salvage_hf.cli import one_line_errors, parse_arguments
from salvage_hf.evaluation.arguments import BenchmarkArguments
from salvage_hf.evaluation.budget_curve import BudgetCurveArguments, budget_table, paired_table, run_budget_curve

if __name__ == "__main__":
    arguments = parse_arguments(BudgetCurveArguments, BenchmarkArguments, description=__doc__)
    with one_line_errors("budget_curve.py"):
        found = run_budget_curve(*arguments)
    if PartialState().is_main_process:
        print(budget_table(found))
        if "salvage_refined" in found["methods"]:
            print(paired_table(found))
