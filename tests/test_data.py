import io
import logging
import shutil

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, PretrainedConfig

from salvage_hf.data import ProcessedImages, image_names, load_images, match_labels, open_image, random_view


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets_cache")


@pytest.fixture
def processor(tmp_path, save_processor):
    save_processor(tmp_path)
    return AutoImageProcessor.from_pretrained(tmp_path)


def config_with(*names, num_labels=None):
    return PretrainedConfig(id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)})


def picture(value=0, size=(20, 20), mode="RGB"):
    """Noise around a grey value: a file of some length, so that half of it is a broken image."""
    noise = np.random.default_rng(value).integers(-9, 9, (*size[::-1], 3)) + 100 + 10 * value
    return Image.fromarray(noise.astype(np.uint8)).convert(mode)


@pytest.fixture
def folder(tmp_path):
    """Two classes of three images, in one format each."""
    for name, suffix in (("n01440764_tench", "jpg"), ("n02102040_English_springer", "png")):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(3):
            picture(i).save(tmp_path / "images" / name / f"{name}_val_{i}.{suffix}")
    return tmp_path / "images"


def test_a_folder_gives_every_image_with_its_label_and_name(folder, processor):
    dataset = load_images(folder=str(folder))
    images = ProcessedImages(dataset, processor, config_with("English springer", "tench"))
    assert image_names(dataset)[0] == "n01440764_tench/n01440764_tench_val_0.jpg"
    # words such as "val" in names sort nothing out, and the classifier's order of labels counts
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
    assert load_images(folder=str(flat)).column_names == ["image"]  # images without a class have none


def test_a_mask_belongs_to_one_image(folder, processor, tmp_path):
    tench = folder / "n01440764_tench"
    picture(7).save(tench / "n01440764_tench_val_0.png")
    with pytest.raises(ValueError, match=r"several images would have the same mask: \['.*tench_val_0.png'\]"):
        ProcessedImages(load_images(folder=str(folder)), processor, mask_dir=str(tmp_path / "masks"))
    nameless = load_images(parquet(tmp_path, [png(picture(0))]))
    with pytest.raises(ValueError, match="needs images with file names, 1 have none"):
        ProcessedImages(nameless, processor, mask_dir=str(tmp_path / "masks"))


def test_items_of_a_batch_equal_single_items(folder, processor):
    images = ProcessedImages(load_images(folder=str(folder)), processor, config_with("tench", "english_springer"))
    for item in images.__getitems__([5, 0, 3]):
        assert torch.equal(item["pixel_values"], images[item["ids"]]["pixel_values"])
        assert item["labels"] == images[item["ids"]]["labels"]


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


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give either dataset_name or folder"),
        ({"dataset_name": "a", "folder": "b"}, "give either dataset_name or folder, got 'a' and 'b'"),
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


def corrupt(path, how):
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "text": b"<html>404</html>", "truncated": whole[: len(whole) // 2]}[how])


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


def test_missing_columns_are_named(folder, processor):
    with pytest.raises(ValueError, match=r"no column 'img' in the data set, its columns are \['image', 'label'\]"):
        load_images(folder=str(folder), image_column="img")
    with pytest.raises(ValueError, match=r"no column 'labels' in the data set, its columns are \['image', 'label'\]"):
        ProcessedImages(load_images(folder=str(folder)), processor, config_with("a", "b"), label_column="labels")


# Data sets that are not folders


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def parquet(tmp_path, images, labels=None, feature=None):
    """A data set as the Hub holds it: one parquet file with the bytes of the images."""
    columns, features = {"image": images}, {"image": datasets.Image()}
    if labels is not None:
        columns["label"], features["label"] = labels, feature or datasets.Value("int64")
    folder = tmp_path / "dataset"
    folder.mkdir()
    dataset = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    dataset.to_parquet(folder / "train-00000-of-00001.parquet")
    return str(folder)


def test_parquet_images_are_bytes_without_a_path(tmp_path, processor):
    feature = datasets.ClassLabel(names=["cat", "dog"])
    name = parquet(tmp_path, [png(picture(i)) for i in range(3)], [0, 1, 1], feature)
    dataset = load_images(name)
    images = ProcessedImages(dataset, processor, config_with("dog", "cat"))
    assert images.labels == [1, 0, 0]
    assert image_names(dataset) == ["0", "1", "2"]
    expected = processor(picture(2), return_tensors="pt")["pixel_values"][0]
    assert torch.equal(images[2]["pixel_values"], expected)


def test_unreadable_and_missing_images_without_a_path_are_named_by_number(tmp_path):
    images = [png(picture(i)) for i in range(4)]
    images[2]["bytes"] = b"broken"
    images[3] = None
    name = parquet(tmp_path, images)
    with pytest.raises(ValueError, match=r"2 of 4 images cannot be read: 2 \(.*\); 3 \(.*the image is missing\)"):
        load_images(name)
    assert len(load_images(name, on_bad_image="skip")) == 2


def test_no_labels_are_needed_without_a_config(tmp_path, processor):
    images = ProcessedImages(load_images(parquet(tmp_path, [png(picture())])), processor)
    assert set(images[0]) == {"pixel_values", "ids"}


@pytest.mark.parametrize(
    ("labels", "wrong"), [([0, 2, 3], "3"), ([0, -1, 2], "-1"), ([0.5, 1.0, 2.0], "0.5"), ([None, 0, 1], "None")]
)
def test_labels_out_of_range_are_refused(tmp_path, processor, labels, wrong):
    feature = datasets.Value("float32" if isinstance(labels[0], float) else "int64")
    dataset = load_images(parquet(tmp_path, [png(picture(i)) for i in range(3)], labels, feature))
    with pytest.raises(ValueError, match=f"labels in column 'label' contain {wrong}; the labels are 0..2"):
        ProcessedImages(dataset, processor, config_with("a", "b", "c"))


def test_the_label_of_an_unlabelled_split_is_refused(tmp_path, processor):
    feature = datasets.ClassLabel(names=["a", "b"])  # -1 and None mean "no label"; as an index, -1 would be "b"
    dataset = load_images(parquet(tmp_path, [png(picture(i)) for i in range(3)], [0, -1, 1], feature))
    with pytest.raises(ValueError, match="contain -1"):
        ProcessedImages(dataset, processor, config_with("a", "b"))


def test_one_label_accepts_0_and_1_only(tmp_path, processor):
    dataset = load_images(parquet(tmp_path, [png(picture(i)) for i in range(3)], [0, 1, 1]))
    assert ProcessedImages(dataset, processor, config_with("abnormal")).labels == [0, 1, 1]
    other = dataset.map(lambda _, index: {"label": index}, with_indices=True)
    with pytest.raises(ValueError, match=r"contain 2; the labels are 0\.\.1"):
        ProcessedImages(other, processor, config_with("abnormal"))


# Pixels


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
    with pytest.raises(ValueError, match=r"a/bad.tiff \(ValueError: .*images of 8 or 16 bits are needed\)"):
        load_images(folder=str(tmp_path / "images"))


def test_photographs_are_turned_upright_as_transformers_does(tmp_path):
    image = picture(size=(12, 8))
    exif = Image.Exif()
    exif[274] = 6  # the camera was held upright
    image.save(tmp_path / "photo.png", exif=exif)
    opened = open_image(tmp_path / "photo.png")
    assert opened.size == (8, 12)
    assert np.array_equal(np.asarray(opened), np.rot90(np.asarray(image), -1))


def test_images_of_any_size_and_mode_come_as_one_batch(tmp_path, processor):
    sizes = {"RGB": (20, 20), "L": (64, 30), "RGBA": (5, 90), "P": (1, 1)}
    name = parquet(tmp_path, [png(picture(size=size, mode=mode)) for mode, size in sizes.items()])
    items = ProcessedImages(load_images(name), processor).__getitems__([0, 1, 2, 3])
    assert {item["pixel_values"].shape for item in items} == {(3, 16, 16)}


# Labels


@pytest.mark.parametrize(
    ("names", "labels", "expected"),
    [
        (["tench", "church"], ["church", "tench"], [1, 0]),
        (["n01440764_tench", "n03028079_church"], ["church", "tench"], [1, 0]),
        (["English_Springer"], ["tench", "english springer"], [1]),  # a subset of the classifier's labels
        (["a", "b", "c"], ["LABEL_0", "LABEL_1", "LABEL_2"], [0, 1, 2]),
        (["LABEL_1", "LABEL_0"], ["LABEL_0", "LABEL_1", "LABEL_2"], [1, 0]),
        (["no", "yes"], ["LABEL_0"], [0, 1]),  # one label without a name: the data set's second class
        (["abnormal", "normal"], ["abnormal"], [1, 0]),
        (["normal", "abnormal"], ["Abnormal"], [0, 1]),
        (["abnormal"], ["abnormal"], [1]),
    ],
)
def test_labels_are_matched_by_name(names, labels, expected):
    assert match_labels(names, config_with(*labels)) == expected


@pytest.mark.parametrize(
    ("names", "labels", "listed"),
    [
        (["tench", "shark"], ["tench", "church"], r"\['shark'\] against \['tench', 'church'\]"),
        (["tench"], ["tench", "Tench"], r"\['tench'\] against"),  # two counterparts
        (["n01_x", "crane", "n03126707_crane"], ["crane", "n01 x"], r"cannot be matched"),  # two names for one label
        (["n02012849_crane", "n03126707_crane"], ["crane", "x"], r"n02012849_crane.*n03126707_crane"),
        (["a", "b"], ["LABEL_0", "LABEL_1", "LABEL_2"], r"\['a', 'b'\] against \['LABEL_0'"),
        (["normal", "healthy"], ["abnormal"], r"\['normal', 'healthy'\] against \['abnormal'\]"),
        (["normal", "abnormal", "unsure"], ["abnormal"], r"\['normal', 'unsure'\] against"),
    ],
)
def test_labels_that_do_not_match_are_listed(names, labels, listed):
    with pytest.raises(ValueError, match=listed) as error:
        match_labels(names, config_with(*labels))
    assert "target='predicted'" in str(error.value)


@pytest.mark.parametrize(
    ("labels", "shown"),
    [
        (["English springer", "tench"], "n01440764_tench -> tench, n02102040_English_springer -> English springer"),
        (["tench"], "n01440764_tench -> tench, n02102040_English_springer -> not tench"),
    ],
)
def test_the_mapping_is_told(folder, processor, caplog, labels, shown):
    with caplog.at_level(logging.INFO, "salvage_hf.data"):
        ProcessedImages(load_images(folder=str(folder)), processor, config_with(*labels))
    assert shown in caplog.text


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
