"""Trains and scores the arms of the paper's ablations; scripts/report.py draws them.

accelerate launch scripts/ablation.py --model_name_or_path CLASSIFIER --train_dir FOLDER --validation_dir FOLDER \
    --max_train_steps 500 --seeds 0 1 2
"""

from accelerate import PartialState

from salvage_hf.cli import one_line_errors, parse_arguments
from salvage_hf.evaluation.ablation import AblationArguments, ablation_table, run_ablation
from salvage_hf.training.explainer import ExplainerArguments

if __name__ == "__main__":
    arguments = parse_arguments(AblationArguments, ExplainerArguments, description=__doc__)
    with one_line_errors("ablation.py"):
        ablation = run_ablation(*arguments)
    if PartialState().is_main_process:
        print(ablation_table(ablation))
