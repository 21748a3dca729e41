"""Everybody's own data sets: folders that `datasets` reads or wrote, splits, labels that are texts, streams, masks."""

import logging

import datasets
import numpy as np
import pytest
from image_files import config_with, picture, png
from PIL import Image
from transformers import BitImageProcessor

from salvage_hf.arguments import ImageArguments
from salvage_hf.data import sources
from salvage_hf.data.images import ProcessedImages, content_digest
from salvage_hf.data.loading import image_names, load_images
from salvage_hf.data.sources import Source, validation_split

KEEP = BitImageProcessor(size={"height": 20, "width": 20}, do_center_crop=False)
TEXTS, IMAGES = datasets.Value("string"), datasets.Image()


def made(number=4, first=0, **columns):
    """A data set of `number` pictures without file names."""
    features = {"image": IMAGES, **{name: feature for name, (_, feature) in columns.items()}}
    values = {name: values for name, (values, _) in columns.items()}
    images = [png(picture(first + index)) for index in range(number)]
    return datasets.Dataset.from_dict({"image": images, **values}, datasets.Features(features))


def parquet(folder, **splits):
    folder.mkdir(parents=True, exist_ok=True)
    for name, dataset in splits.items():
        dataset.to_parquet(folder / f"{name}.parquet")
    return str(folder)


def test_what_save_to_disk_wrote_is_read(tmp_path):
    splits = datasets.DatasetDict(learn=made(3), check=made(2))
    splits.save_to_disk(tmp_path / "splits")
    made(5).save_to_disk(tmp_path / "one")
    assert Source(str(tmp_path / "splits")).split_names() == ["learn", "check"]
    assert [len(load_images(str(tmp_path / "splits"), split=split)) for split in ("learn", "check")] == [3, 2]
    assert Source(str(tmp_path / "one")).split_names() == ["train"]
    assert len(load_images(str(tmp_path / "one"))) == 5
    with pytest.raises(
        ValueError, match=r"data set '.*splits' has no split 'train', its splits are \['learn', 'check'\]"
    ):
        load_images(str(tmp_path / "splits"))
    (tmp_path / "one" / "state.json").write_text("{")
    with pytest.raises(ValueError, match=r"what save_to_disk wrote to '.*one' cannot be loaded: "):
        load_images(str(tmp_path / "one"))


def with_metadata(folder, masks=False):
    """Images of two splits, each with a metadata.csv; the mask of image i is white in its first i + 1 rows."""
    for split, labels in {"train": ("dog", "cat", "dog"), "test": ("cat", "cat", "dog")}.items():
        (folder / split).mkdir(parents=True)
        lines = ["file_name,kind" + ",mask_file_name" * masks]
        for number, label in enumerate(labels):
            picture(number).save(folder / split / f"{number}.png")
            lines.append(f"{number}.png,{label}" + f",mask{number}.png" * masks)
            if masks:
                mask = Image.new("L", (20, 20))
                mask.paste(255, (0, 0, 20, number + 1))
                mask.save(folder / split / f"mask{number}.png")
        (folder / split / "metadata.csv").write_text("\n".join(lines))
    return str(folder)


def test_images_with_metadata_have_its_labels(tmp_path):
    dataset = load_images(with_metadata(tmp_path / "own"), split="test", label_column="kind")
    assert dataset.features["kind"].names == ["cat", "dog"]
    assert image_names(dataset) == [f"test/{number}.png" for number in range(3)]
    assert ProcessedImages(dataset, KEEP, config_with("dog", "cat"), label_column="kind").labels == [1, 1, 0]


@pytest.mark.skipif(int(datasets.__version__.split(".")[0]) < 4, reason="metadata of one file per image only")
def test_images_with_metadata_have_its_masks(tmp_path):
    dataset = load_images(with_metadata(tmp_path / "own", masks=True), split="test")
    images = ProcessedImages(dataset, KEEP, mask_column="mask")
    for number in range(3):
        region = np.zeros((20, 20), dtype=bool)
        region[: number + 1] = True
        assert np.array_equal(images[number]["masks"].numpy(), region)


def test_labels_that_are_texts_are_sorted_by_name_and_images_stay(tmp_path):
    texts = ["pug", "Pug", "boxer", "pug"]
    name = parquet(tmp_path / "own", train=made(label=(texts, TEXTS), number=4))
    dataset = load_images(name)
    assert dataset.features["label"].names == sorted(set(texts)) == ["Pug", "boxer", "pug"]
    assert [dataset.features["label"].int2str(label) for label in dataset["label"]] == texts
    assert [image["bytes"] for image in dataset["image"]] == [png(picture(number))["bytes"] for number in range(4)]
    own = parquet(tmp_path / "missing", train=made(label=(["a", None, "b", "b"], TEXTS)))
    with pytest.raises(ValueError, match="column 'label' holds no label at position 1"):
        load_images(own)


def test_a_configuration_is_chosen_by_name(tmp_path):
    parquet(tmp_path / "own" / "small", train=made(2))
    parquet(tmp_path / "own" / "large", train=made(5))
    configs = [f"- config_name: {name}\n  data_files: {name}/train.parquet\n" for name in ("small", "large")]
    (tmp_path / "own" / "README.md").write_text(f"---\nconfigs:\n{''.join(configs)}---\n")
    assert len(load_images(Source(str(tmp_path / "own"), "large"))) == 5
    assert Source(str(tmp_path / "own"), "small").split_names() == ["train"]
    with pytest.raises(ValueError, match=r"the split 'train' of '.*own' cannot be loaded: .*small"):
        load_images(Source(str(tmp_path / "own")))
    with pytest.raises(ValueError, match=r"the list of splits of '.*own' cannot be loaded: .*huge"):
        Source(str(tmp_path / "own"), "huge").split_names()


@pytest.mark.parametrize(
    ("splits", "given", "chosen", "log"),
    [
        (("train", "validation", "test"), {}, "validation", "'validation' validates; not used: train, test "),
        (("train", "test"), {}, None, "a share of the training images validates; not used: train, test "),
        (("train", "test"), {"validation_split_name": "test"}, "test", "the split 'test' validates; not used: train "),
        (("validation",), {}, "validation", None),
    ],
)
def test_splits_that_are_not_used_are_named(tmp_path, caplog, splits, given, chosen, log):
    name = parquet(tmp_path / "own", **{split: made(2) for split in splits})
    args = ImageArguments(dataset_name=name, **given)
    with caplog.at_level(logging.INFO, "salvage_hf.data"):
        assert validation_split(args, Source.of(args), ("validation",)) == chosen
    assert (log in caplog.text) if log else not caplog.messages
    assert validation_split(args, Source.of(args), ("validation", "test")) == (chosen or "test")


def test_a_split_that_is_not_there_is_refused(tmp_path):
    name = parquet(tmp_path / "own", train=made(2))
    args = ImageArguments(dataset_name=name, validation_split_name="dev")
    with pytest.raises(ValueError, match=r"validation_split_name='dev' is no split of '.*own'; its splits are"):
        validation_split(args, Source.of(args), ("validation",))
    args = ImageArguments(dataset_name=name)
    assert validation_split(args, Source.of(args), ("validation", "test")) is None
    with pytest.raises(ValueError, match=r"has no split 'validation' or 'test', its splits are .*; name one by"):
        validation_split(args, Source.of(args), ("validation", "test"), required=True)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dataset_config_name": "small"}, "dataset_config_name says more about a data set: give dataset_name too"),
        ({"dataset_dir": "folder"}, "dataset_dir says more about a data set: give dataset_name too"),
        ({"validation_split_name": "test"}, "validation_split_name says more about a data set: give dataset_name too"),
        ({"streaming": True}, "streaming says more about a data set: give dataset_name too"),
        (
            {"dataset_name": "pet", "validation_dir": "folder", "validation_split_name": "test"},
            "give either validation_dir or validation_split_name, got 'folder' and 'test'",
        ),
        ({"dataset_dir": ""}, "dataset_dir must not be empty"),
    ],
)
def test_arguments_that_contradict_each_other(given, message):
    with pytest.raises(ValueError, match=message):
        ImageArguments(**given)


@pytest.mark.usefixtures("impatient_streams")
def test_a_stream_gives_so_many_images_of_all(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "SHUFFLE_BUFFER", 8)
    labels = datasets.ClassLabel(names=["a", "b"])
    masks = [png(Image.new("L", (20, 20), number)) for number in range(12)]
    whole = made(12, label=([0, 1] * 6, labels), mask=(masks, IMAGES))
    source = Source(parquet(tmp_path / "own", train=whole), streaming=True)
    dataset = load_images(source, max_samples=5)
    assert dataset.features["label"] == labels
    stored = [png(picture(number))["bytes"] for number in range(12)]
    drawn = [stored.index(image["bytes"]) for image in dataset["image"]]
    assert len(set(drawn)) == 5
    assert drawn != [0, 1, 2, 3, 4]
    assert list(dataset["label"]) == [number % 2 for number in drawn]
    images = ProcessedImages(dataset, KEEP, mask_column="mask")
    assert [bool(images[index]["masks"].any()) for index in range(5)] == [number > 0 for number in drawn]
    assert list(load_images(source, max_samples=5)["image"]) == list(dataset["image"])
    assert len(load_images(source, max_samples=99)) == 12
    with pytest.raises(
        ValueError, match="streaming needs max_train_samples and max_eval_samples: images are read many"
    ):
        load_images(source)
    with pytest.raises(ValueError, match=r"the split 'test' of '.*own' cannot be loaded: "):
        load_images(source, split="test", max_samples=5)


def test_masks_in_a_column_belong_to_images_without_file_names(tmp_path):
    masks = [png(Image.new("L", size, 1)) for size in ((20, 20), (20, 20), (9, 20))]
    masks[1] = None
    dataset = load_images(parquet(tmp_path / "own", train=made(3, region=(masks, IMAGES))))
    images = ProcessedImages(dataset, KEEP, mask_column="region")
    assert images[0]["masks"].all()
    with pytest.raises(ValueError, match="mask of image '1' cannot be used: the image is missing"):
        images[1]
    with pytest.raises(ValueError, match="mask of image '2' cannot be used: its size is 9 x 20, the upright picture's"):
        images[2]
    with pytest.raises(ValueError, match=r"no column 'mask' of masks in the data set, its columns are \['image', 'reg"):
        ProcessedImages(dataset, KEEP, mask_column="mask")
    numbers = load_images(parquet(tmp_path / "numbers", train=made(2, mask=([0, 1], datasets.Value("int64")))))
    with pytest.raises(ValueError, match=r"column 'mask' holds no masks, but Value.*; masks are pictures"):
        ProcessedImages(numbers, KEEP, mask_column="mask")


def test_the_content_of_images_is_that_of_their_masks_too(tmp_path):
    digests = set()
    for value in (0, 1):
        masks = [png(Image.new("L", (20, 20), value))] * 2
        dataset = load_images(parquet(tmp_path / f"own{value}", train=made(2, mask=(masks, IMAGES))))
        for column in ("mask", None):
            digests.add(content_digest(ProcessedImages(dataset, KEEP, mask_column=column), [0, 1]))
    assert len(digests) == 3
