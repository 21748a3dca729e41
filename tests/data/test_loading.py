"""Reading images: folders, data sets, broken files, modes."""

import logging
import os
import subprocess
from pathlib import Path

import datasets
import numpy as np
import pytest
from image_files import EPS, corrupt, parquet, picture, png
from PIL import Image

from salvage_hf.data.images import ProcessedImages, content_digest
from salvage_hf.data.loading import image_names, load_images, open_image


def test_folder_names_with_glob_characters_are_taken_literally(folder):
    odd = folder.rename(folder.parent / "photos [2024] *")
    assert len(load_images(folder=str(odd))) == 6


def test_files_that_are_no_images_are_passed_over(folder):
    (folder / "n01440764_tench" / "notes.txt").write_text("a tench")
    (folder / "n01440764_tench" / ".DS_Store").write_bytes(b"\0")
    assert len(load_images(folder=str(folder))) == 6


def test_changed_files_are_read_again(folder):
    load_images(folder=str(folder))
    broken = folder / "n01440764_tench" / "n01440764_tench_val_1.jpg"
    broken.write_bytes(b"no image any more")
    with pytest.raises(ValueError, match="1 of 6"):
        load_images(folder=str(folder))


def test_every_file_is_checked_anew(folder):
    """An image that was mended is taken, and one that was overwritten under its old time is not."""
    path = folder / "n01440764_tench" / "n01440764_tench_val_1.jpg"
    whole, status = path.read_bytes(), path.stat()
    for content, good in ((whole, True), (b"x" * len(whole), False), (whole, True)):
        path.write_bytes(content)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert len(load_images(folder=str(folder), on_bad_image="skip")) == (6 if good else 5)


def test_a_data_set_that_cannot_be_loaded_is_named_with_the_cause(tmp_path, monkeypatch):
    name = parquet(tmp_path, [png(picture())])
    next((tmp_path / "dataset").iterdir()).write_bytes(b"PAR1 damaged")
    with pytest.raises(ValueError, match=f"the split 'train' of '{name}' cannot be loaded: .*[Pp]arquet"):
        load_images(name)
    with pytest.raises(ValueError, match="the split 'train' of 'nobody/nothing' cannot be loaded: "):
        load_images("nobody/nothing")


def test_a_cache_that_cannot_be_written_is_the_cause(tmp_path, monkeypatch):
    name = parquet(tmp_path, [png(picture())])
    (tmp_path / "cache").write_text("a file where the folder of the cache should be")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    with pytest.raises(ValueError, match=f"the split 'train' of '{name}' cannot be loaded: .*{tmp_path / 'cache'}"):
        load_images(name)


def test_other_columns_of_images_are_not_opened(tmp_path, processor, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **options: pytest.fail("a program was started"))
    name = parquet(tmp_path, [png(picture())], [{"bytes": EPS, "path": None}], datasets.Image())
    images = ProcessedImages(load_images(name), processor)
    assert images[0]["pixel_values"].shape == (3, 16, 16)
    assert len(content_digest(images, [0])) > 0


def test_a_folder_that_cannot_be_read_is_named(folder, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)  # the tests may run as a user who may read everything
    with pytest.raises(ValueError, match=f"folder '{folder}' cannot be read: .*Permission denied"):
        load_images(folder=str(folder))


def test_a_column_without_images_is_refused(tmp_path):
    name = parquet(tmp_path, [png(picture())], [0])
    with pytest.raises(ValueError, match=r"column 'label' of the data set '.*' holds no images, but Value"):
        load_images(name, image_column="label")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give either dataset_name or folder"),
        ({"source": "a", "folder": "b"}, "give either dataset_name or folder, got 'a' and 'b'"),
        ({"folder": "nowhere"}, "'nowhere' is not a folder"),
        ({"folder": ""}, "'' is not a folder"),
        ({"folder": "nowhere", "on_bad_image": "ignore"}, "on_bad_image='ignore' is neither"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        load_images(**options)


@pytest.mark.parametrize("content", ["nothing", "empty classes", "text"])
def test_a_folder_without_images(tmp_path, content):
    empty = tmp_path / "empty"
    (empty / "cat").mkdir(parents=True) if content != "nothing" else empty.mkdir()
    if content == "text":
        (empty / "cat" / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match=r"no (column|images).*"):
        load_images(folder=str(empty))


@pytest.mark.parametrize("how", ["empty", "text", "truncated"])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_unreadable_images_are_named_and_refused_or_left_out(folder, caplog, how, suffix):
    path = sorted(folder.rglob(f"*.{suffix}"))[1]
    name = f"{path.parent.name}/{path.name}"
    corrupt(path, how)
    with pytest.raises(ValueError, match="1 of 6 images cannot be read") as error:
        load_images(folder=str(folder))
    assert name in str(error.value)
    assert "on_bad_image='skip'" in str(error.value)
    with caplog.at_level(logging.WARNING, "salvage_hf.data"):
        dataset = load_images(folder=str(folder), on_bad_image="skip")
    assert name in caplog.text
    assert len(dataset) == 5
    assert name not in image_names(dataset)


def test_all_images_unreadable(folder):
    for path in folder.rglob("*_val_*"):
        corrupt(path, "text")
    with pytest.raises(ValueError, match="has no readable image"):
        load_images(folder=str(folder), on_bad_image="skip")


def test_unreadable_and_missing_images_without_a_path_are_named_by_number(tmp_path):
    images = [png(picture(i)) for i in range(4)]
    images[2]["bytes"] = b"broken"
    images[3] = None
    name = parquet(tmp_path, images)
    with pytest.raises(ValueError, match=r"2 of 4 images cannot be read: 2 \(.*\); 3 \(.*the image is missing\)"):
        load_images(name)
    assert len(load_images(name, on_bad_image="skip")) == 2


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK"])
def test_every_mode_becomes_the_same_rgb(tmp_path, mode):
    original = Image.new("L", (8, 8), 255)
    original.paste(0, (0, 0, 4, 8))
    path = tmp_path / ("image.tiff" if mode == "CMYK" else "image.png")
    original.convert("RGB" if mode in ("P", "CMYK") else "L").convert(mode).save(path)
    assert Image.open(path).mode == mode
    opened = open_image(path)
    assert opened.mode == "RGB"
    assert np.array_equal(np.asarray(opened), np.asarray(original.convert("RGB")))


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bit_images_keep_their_greys(tmp_path, suffix):
    values = np.arange(256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(values * 257).save(tmp_path / f"image.{suffix}")
    assert np.array_equal(np.asarray(open_image(tmp_path / f"image.{suffix}"))[..., 1], values)


@pytest.mark.parametrize("values", [np.full((4, 4), 70_000, np.int32), np.full((4, 4), 0.5, np.float32)])
def test_pixels_of_other_ranges_are_refused_by_name(tmp_path, values):
    for label in "ab":
        (tmp_path / "images" / label).mkdir(parents=True)
        picture().save(tmp_path / "images" / label / "good.png")
    Image.fromarray(values).save(tmp_path / "images" / "a" / "bad.tiff")
    with pytest.raises(ValueError, match=r"a/bad.tiff \(its .*pixels lie between .* images of 8 or 16 bits are needed"):
        load_images(folder=str(tmp_path / "images"))
    assert len(load_images(folder=str(tmp_path / "images"), pixel_range=(0, 70_000))) == 3
    with pytest.raises(ValueError, match=r"pixel_range must be two numbers, the smaller one first, got \[9, 1\]"):
        load_images(folder=str(tmp_path / "images"), on_bad_image="skip", pixel_range=[9, 1])


def test_photographs_are_turned_upright_as_transformers_does(tmp_path):
    image = picture(size=(12, 8))
    exif = Image.Exif()
    exif[274] = 6  # the camera was held upright
    image.save(tmp_path / "photo.png", exif=exif)
    opened = open_image(tmp_path / "photo.png")
    assert opened.size == (8, 12)
    assert np.array_equal(np.asarray(opened), np.rot90(np.asarray(image), -1))
