"""Explains every image of a data set: maps and predictions, as a data set of parquet files.

accelerate launch scripts/explain_dataset.py --model_name_or_path CLASSIFIER --explainer DIR --validation_dir FOLDER
"""

from accelerate import PartialState

from salvage_hf.cli import one_line_errors, parse_arguments
from salvage_hf.evaluation.explain_dataset import ExplainDatasetArguments, dataset_table, run_explain_dataset

if __name__ == "__main__":
    (arguments,) = parse_arguments(ExplainDatasetArguments, description=__doc__)
    with one_line_errors("explain_dataset.py"):
        found = run_explain_dataset(arguments)
    if PartialState().is_main_process:
        print(dataset_table(found, arguments.output_dir))
