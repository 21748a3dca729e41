"""Compares attribution methods.

accelerate launch scripts/benchmark.py --model_name_or_path CLASSIFIER --explainer DIR --validation_dir FOLDER
"""

from transformers import HfArgumentParser

from salvage_hf.benchmark import BenchmarkArguments, markdown_table, run_benchmark

if __name__ == "__main__":
    print(
        markdown_table(
            run_benchmark(HfArgumentParser(BenchmarkArguments, description=__doc__).parse_args_into_dataclasses()[0])
        )
    )
