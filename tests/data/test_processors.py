"""What an image processor does to a picture."""

import pytest
from PIL import Image
from transformers import AutoImageProcessor

from salvage_hf.data.processors import processed_size


@pytest.mark.parametrize(
    ("overrides", "size"),
    [
        ({}, (16, 16)),
        ({"do_center_crop": False}, None),
        ({"do_center_crop": False, "size": {"height": 20, "width": 24}}, (20, 24)),
        ({"crop_size": {"height": 8, "width": 12}}, (8, 12)),
    ],
)
def test_processed_size_is_what_the_processor_returns(save_processor, tmp_path, overrides, size):
    save_processor(tmp_path, **overrides)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert processed_size(processor) == size
    if size:
        pixel_values = processor(Image.new("RGB", (40, 30)), return_tensors="pt")["pixel_values"]
        assert pixel_values.shape[-2:] == size
