"""Calibrating an explainer in its folder."""

import pytest
import torch
from transformers import AutoImageProcessor, AutoModel

from salvage_hf.data.images import ProcessedImages
from salvage_hf.data.loading import load_images
from salvage_hf.evaluation.calibration import CalibrationArguments, run_calibration
from salvage_hf.masking import MaskedClassifier
from salvage_hf.refinement import calibrate


@pytest.fixture
def calibration_arguments(benchmark_arguments, tmp_path):
    given = benchmark_arguments()

    def make(**changes):
        return CalibrationArguments(
            **{
                "model_name_or_path": given.model_name_or_path,
                "explainer": str(tmp_path / "explainer"),
                "validation_dir": given.validation_dir,
                "budget": 64,
                **changes,
            }
        )

    return make


@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_the_calibration_of_all_images_is_written(calibration_arguments, batch_size):
    args = calibration_arguments(per_device_eval_batch_size=batch_size)
    before = AutoModel.from_pretrained(args.explainer)
    written = run_calibration(args)
    explainer = AutoModel.from_pretrained(args.explainer)
    assert explainer.config.calibration == written
    assert (written["images"], written["budget"]) == (9, 64)
    for old, new in zip(before.parameters(), explainer.parameters(), strict=True):
        assert torch.equal(old, new)
    v = MaskedClassifier.from_pretrained(args.model_name_or_path)
    processor = AutoImageProcessor.from_pretrained(args.model_name_or_path)
    images = ProcessedImages(load_images(folder=args.validation_dir), processor, v.config)
    batch = torch.utils.data.default_collate([images[index] for index in range(9)])
    assert written == pytest.approx(calibrate(v, explainer.eval(), [batch], 64), rel=1e-3)


def test_some_images_are_chosen(calibration_arguments):
    assert run_calibration(calibration_arguments(max_eval_samples=4))["images"] == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_name_or_path": ""}, "model_name_or_path is needed"),
        ({"explainer": "nowhere"}, "explainer='nowhere' is no folder"),
        ({"budget": 31}, "budget must be at least 32, got 31"),
    ],
)
def test_wrong_arguments(calibration_arguments, changes, message):
    with pytest.raises(ValueError, match=message):
        calibration_arguments(**changes)
