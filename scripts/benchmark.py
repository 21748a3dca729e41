"""Compares attribution methods.

accelerate launch scripts/benchmark.py --model_name_or_path CLASSIFIER --explainer DIR --validation_dir FOLDER
"""

from accelerate import PartialState
from transformers import HfArgumentParser

from salvage_hf.benchmark import BenchmarkArguments, results_table, run_benchmark

if __name__ == "__main__":
    args = HfArgumentParser(BenchmarkArguments, description=__doc__).parse_args_into_dataclasses()[0]
    results = run_benchmark(args)
    if PartialState().is_main_process:
        print(results_table(results))
