"""Labels of data sets in those of the classifier."""

import logging

import datasets
import pytest
from image_files import config_with, parquet, picture, png

from salvage_hf.data.images import ProcessedImages
from salvage_hf.data.labels import match_labels
from salvage_hf.data.loading import load_images


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
def test_the_mapping_is_logged(folder, processor, caplog, labels, shown):
    with caplog.at_level(logging.INFO, "salvage_hf.data"):
        ProcessedImages(load_images(folder=str(folder)), processor, config_with(*labels))
    assert shown in caplog.text


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
