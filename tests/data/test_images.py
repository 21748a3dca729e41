"""Images as a classifier takes them."""

import shutil

import datasets
import numpy as np
import pytest
import torch
from image_files import black_png, config_with, parquet, picture, png
from memory import peak_memory
from PIL import Image
from transformers import AutoImageProcessor

from salvage_hf.data.images import ProcessedImages, content_digest, random_view
from salvage_hf.data.loading import image_names, load_images
from salvage_hf.data.pictures import MAX_ASPECT_RATIO
from salvage_hf.modeling import process


def test_a_folder_gives_every_image_with_its_label_and_name(folder, processor):
    dataset = load_images(folder=str(folder))
    images = ProcessedImages(dataset, processor, config_with("English springer", "tench"))
    assert image_names(dataset)[0] == "n01440764_tench/n01440764_tench_val_0.jpg"
    # file names with words such as "val" are not sorted into splits; labels are in the classifier's order
    assert images.labels == [1, 1, 1, 0, 0, 0]
    item = images[4]
    assert item["labels"] == 0
    assert item["ids"] == 4
    expected = processor(picture(1), return_tensors="pt")["pixel_values"][0]
    assert torch.equal(item["pixel_values"], expected)
    assert item["pixel_values"].shape == (3, 16, 16)


def test_a_class_that_stands_alone_keeps_its_label(folder, processor):
    shutil.rmtree(folder / "n02102040_English_springer")
    (folder / ".DS_Store").write_bytes(b"of a file browser")
    images = ProcessedImages(load_images(folder=str(folder)), processor, config_with("English springer", "tench"))
    assert images.labels == [1, 1, 1]
    flat = folder / "n01440764_tench"
    assert load_images(folder=str(flat)).column_names == ["image"]  # images in no class folder get no label column


def test_items_of_a_batch_equal_single_items(folder, processor):
    images = ProcessedImages(load_images(folder=str(folder)), processor, config_with("tench", "english_springer"))
    for item in images.__getitems__([5, 0, 3]):
        assert torch.equal(item["pixel_values"], images[item["ids"]]["pixel_values"])
        assert item["labels"] == images[item["ids"]]["labels"]


def test_missing_columns_are_named(folder, processor):
    with pytest.raises(ValueError, match=r"no column 'img' in the data set, its columns are \['image', 'label'\]"):
        load_images(folder=str(folder), image_column="img")
    with pytest.raises(ValueError, match=r"no column 'labels' in the data set, its columns are \['image', 'label'\]"):
        ProcessedImages(load_images(folder=str(folder)), processor, config_with("a", "b"), label_column="labels")


def test_parquet_images_are_bytes_without_a_path(tmp_path, processor):
    feature = datasets.ClassLabel(names=["cat", "dog"])
    name = parquet(tmp_path, [png(picture(i)) for i in range(3)], [0, 1, 1], feature)
    dataset = load_images(name)
    images = ProcessedImages(dataset, processor, config_with("dog", "cat"))
    assert images.labels == [1, 0, 0]
    assert image_names(dataset) == ["0", "1", "2"]
    expected = processor(picture(2), return_tensors="pt")["pixel_values"][0]
    assert torch.equal(images[2]["pixel_values"], expected)


def test_no_labels_are_needed_without_a_config(tmp_path, processor):
    images = ProcessedImages(load_images(parquet(tmp_path, [png(picture())])), processor)
    assert set(images[0]) == {"pixel_values", "ids"}


def test_images_of_any_size_and_mode_come_as_one_batch(tmp_path, processor):
    sizes = {"RGB": (20, 20), "L": (64, 30), "RGBA": (5, 90), "P": (1, 1)}
    name = parquet(tmp_path, [png(picture(size=size, mode=mode)) for mode, size in sizes.items()])
    items = ProcessedImages(load_images(name), processor).__getitems__([0, 1, 2, 3])
    assert {item["pixel_values"].shape for item in items} == {(3, 16, 16)}


def test_views_are_the_image_and_the_same_random_parts_of_it_in_any_batch(folder, processor):
    dataset = load_images(folder=str(folder))
    config = config_with("tench", "english_springer")
    images, views = (
        ProcessedImages(dataset, processor, config),
        ProcessedImages(dataset, processor, config, num_views=3),
    )
    assert len(views) == 18
    for index in range(6):
        assert torch.equal(views[index]["pixel_values"], images[index]["pixel_values"])
    batch = views.__getitems__([17, 7, 11])
    assert [item["ids"] for item in batch] == [17, 7, 11]
    assert [item["labels"] for item in batch] == [images.labels[i] for i in (5, 1, 5)]
    for item in batch:
        assert torch.equal(item["pixel_values"], views[item["ids"]]["pixel_values"])
    assert not torch.equal(views[11]["pixel_values"], views[17]["pixel_values"])
    other = ProcessedImages(dataset, processor, config, num_views=3, seed=1)
    assert not torch.equal(other[11]["pixel_values"], views[11]["pixel_values"])


def test_a_random_view_is_a_part_of_the_picture():
    columns = np.arange(200, dtype=np.uint8)[None, :, None].repeat(100, 0).repeat(3, 2)
    for numbers in np.random.default_rng(0).random((50, 4)):
        view = np.asarray(random_view(Image.fromarray(columns), *numbers))
        height, width = view.shape[:2]
        assert 0.49 <= height * width / (100 * 200) <= 1
        assert abs(width / height - 2) < 0.05
        steps = np.diff(view[0, :, 0].astype(int))
        assert (steps == (-1 if numbers[3] < 0.5 else 1)).all()


@pytest.mark.parametrize("config", [{"image_std": [0.0, 1.0, 1.0]}, {"rescale_factor": float("inf")}])
def test_pixels_that_are_no_numbers_name_the_image(folder, save_processor, tmp_path, config):
    save_processor(tmp_path, **config)
    images = ProcessedImages(load_images(folder=str(folder)), AutoImageProcessor.from_pretrained(tmp_path))
    with pytest.raises(ValueError, match=r"image 'n01440764_tench/.*_2.jpg': .*pixel values that are NaN or infinite"):
        images[2]


def test_an_image_that_is_broken_later_is_named(folder, processor):
    images = ProcessedImages(load_images(folder=str(folder)), processor)
    (folder / "n01440764_tench" / "n01440764_tench_val_2.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"image 'n01440764_tench/n01440764_tench_val_2.jpg' cannot be read: "):
        images.__getitems__([0, 2])


def test_images_of_several_sizes_are_no_batch(tmp_path, save_processor):
    save_processor(tmp_path, do_center_crop=False)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    name = parquet(tmp_path, [png(picture(size=(20, 20))), png(picture(size=(40, 20)))])
    with pytest.raises(ValueError, match="gives images of sizes"):
        ProcessedImages(load_images(name), processor).__getitems__([0, 1])


@pytest.mark.parametrize("family", ["dinov2", "vit"])
def test_a_classifier_of_one_channel_gets_its_pictures(folder, save_processor, tmp_path, tiny_classifier, family):
    save_processor(tmp_path, image_mean=[0.5], image_std=[0.25])
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    images = ProcessedImages(load_images(folder=str(folder)), processor)
    classifier = tiny_classifier(family, num_channels=1)
    assert classifier(images[0]["pixel_values"][None]).logits.isfinite().all()


def test_the_range_of_values_belongs_to_the_content(tmp_path, processor):
    (tmp_path / "scans").mkdir()
    values = np.linspace(0, 4095, 400).astype(np.uint16).reshape(20, 20)
    Image.fromarray(values).save(tmp_path / "scans" / "a.png")
    digests = set()
    for pixel_range in ((0, 4095), (100, 4000), [0, 4095]):
        dataset = load_images(folder=str(tmp_path / "scans"), pixel_range=pixel_range)
        images = ProcessedImages(dataset, processor, pixel_range=pixel_range)
        wanted = Image.fromarray(
            (255 * ((values.clip(*pixel_range) - pixel_range[0]) / (pixel_range[1] - pixel_range[0])))
            .round()
            .astype(np.uint8)
        )
        assert torch.equal(images[0]["pixel_values"], process(processor, [wanted.convert("RGB")])[0])
        digests.add(content_digest(images, [0]))
    assert len(digests) == 2


def test_a_batch_of_large_images_needs_the_memory_of_one(tmp_path, processor):
    (tmp_path / "large").mkdir()
    for number in range(6):
        (tmp_path / "large" / f"{number}.png").write_bytes(black_png(2_000, 2_000))
    images = ProcessedImages(load_images(folder=str(tmp_path / "large")), processor)
    images[0]
    with peak_memory() as one:
        images[0]
    with peak_memory() as six:
        images.__getitems__(list(range(6)))
    assert six.megabytes < one.megabytes + 50  # a decoded one has 16


def test_the_narrowest_image_takes_little_memory(tmp_path, save_processor):
    """Of a single column of pixels, a processor that scales the shorter edge to 224 pixels would make gigabytes."""
    save_processor(tmp_path, 224)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    (tmp_path / "narrow").mkdir()
    (tmp_path / "narrow" / "1.png").write_bytes(black_png(1, MAX_ASPECT_RATIO))
    images = ProcessedImages(load_images(folder=str(tmp_path / "narrow")), processor)
    with peak_memory() as peak:
        assert images[0]["pixel_values"].shape == (3, 224, 224)
    assert peak.megabytes < 300
