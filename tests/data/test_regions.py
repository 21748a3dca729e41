"""Annotated regions: which mask belongs to which image."""

import pytest
from image_files import parquet, picture, png

from salvage_hf.data.images import ProcessedImages
from salvage_hf.data.loading import load_images


def test_a_mask_belongs_to_one_image(folder, processor, tmp_path):
    tench = folder / "n01440764_tench"
    picture(7).save(tench / "n01440764_tench_val_0.png")
    with pytest.raises(ValueError, match=r"several images would have the same mask: \['.*tench_val_0.png'\]"):
        ProcessedImages(load_images(folder=str(folder)), processor, mask_dir=str(tmp_path / "masks"))
    nameless = load_images(parquet(tmp_path, [png(picture(0))]))
    with pytest.raises(ValueError, match="needs images with file names, 1 have none"):
        ProcessedImages(nameless, processor, mask_dir=str(tmp_path / "masks"))
