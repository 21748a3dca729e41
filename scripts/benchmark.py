"""Compares attribution methods.

accelerate launch scripts/benchmark.py --model_name_or_path CLASSIFIER --explainers salvage=DIR --validation_dir FOLDER
"""

from accelerate import PartialState
from transformers import HfArgumentParser

from salvage_hf.evaluation.arguments import BenchmarkArguments
from salvage_hf.evaluation.benchmark import run_benchmark
from salvage_hf.evaluation.tables import results_table

if __name__ == "__main__":
    args = HfArgumentParser(BenchmarkArguments, description=__doc__).parse_args_into_dataclasses()[0]
    results = run_benchmark(args)
    if PartialState().is_main_process:
        print(results_table(results))
