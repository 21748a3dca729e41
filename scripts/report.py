"""Makes tables, figures and a page from finished benchmarks and ablations, without any model.

python scripts/report.py --benchmarks ImageNette=outputs/benchmark --ablations ImageNette=outputs/ablation

Needs what `pip install -e ".[plots]"` installs.
"""

from transformers import HfArgumentParser

from salvage_hf.evaluation.report import ReportArguments, write_report

if __name__ == "__main__":
    print(write_report(HfArgumentParser(ReportArguments, description=__doc__).parse_args_into_dataclasses()[0]))
