"""Compares attribution methods.

accelerate launch scripts/benchmark.py --model_name_or_path CLASSIFIER --explainers salvage=DIR --validation_dir FOLDER
"""

from accelerate import PartialState

from salvage_hf.cli import one_line_errors, parse_arguments
from salvage_hf.evaluation.arguments import BenchmarkArguments
from salvage_hf.evaluation.benchmark import run_benchmark
from salvage_hf.evaluation.tables import results_table

if __name__ == "__main__":
    arguments = parse_arguments(BenchmarkArguments, description=__doc__)
    with one_line_errors("benchmark.py"):
        results = run_benchmark(*arguments)
    if PartialState().is_main_process:
        print(results_table(results))
