"""Makes tables, figures and a page from finished benchmarks and ablations, without any model.

python scripts/report.py --benchmarks ImageNette=outputs/benchmark --ablations ImageNette=outputs/ablation

Needs what `pip install -e ".[plots]"` installs.
"""

from salvage_hf.cli import one_line_errors, parse_arguments

if __name__ == "__main__":
    with one_line_errors("report.py"):
        from salvage_hf.evaluation.report import ReportArguments, write_report  # matplotlib is an extra

        print(write_report(*parse_arguments(ReportArguments, description=__doc__)))
