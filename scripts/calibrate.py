"""Measures how far an explainer's maps can be trusted, and writes it into its config; training has done so already.

python scripts/calibrate.py --model_name_or_path CLASSIFIER --explainer FOLDER --validation_dir FOLDER
"""

from salvage_hf.cli import one_line_errors, parse_arguments
from salvage_hf.evaluation.calibration import CalibrationArguments, run_calibration

if __name__ == "__main__":
    arguments = parse_arguments(CalibrationArguments, description=__doc__)
    with one_line_errors("calibrate.py"):
        print(run_calibration(*arguments))
