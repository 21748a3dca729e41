"""A folder of small images, an image processor for them, and a cache for each test."""

import datasets
import pytest
from image_files import picture
from transformers import AutoImageProcessor


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets_cache")


@pytest.fixture
def processor(tmp_path, save_processor):
    save_processor(tmp_path)
    return AutoImageProcessor.from_pretrained(tmp_path)


@pytest.fixture
def folder(tmp_path):
    """Two classes of three images, each class in a format of its own."""
    for name, suffix in (("n01440764_tench", "jpg"), ("n02102040_English_springer", "png")):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(3):
            picture(i).save(tmp_path / "images" / name / f"{name}_val_{i}.{suffix}")
    return tmp_path / "images"
