"""Labels of data sets in those of the classifier."""

import logging

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_files import config_with, parquet, picture, png
from transformers import PretrainedConfig

from salvage_hf.data.images import ProcessedImages
from salvage_hf.data.labels import match_labels
from salvage_hf.data.loading import image_names, load_images


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


@given(
    values=st.permutations(range(12)),
    ours=st.sampled_from(["{}", "{:02}", "LABEL_{}", "class_{}", "Class {}"]),
    theirs=st.sampled_from(["{}", "LABEL_{}", "{:03}"]),
)
def test_labels_that_are_numbers_are_matched_by_value(values, ours, theirs):
    classifier = config_with(*[theirs.format(value) for value in range(12)])
    assert match_labels([ours.format(value) for value in values], classifier) == list(values)


@pytest.mark.parametrize("pattern", ["{}", "LABEL_{}"])
@pytest.mark.parametrize("labels", [[f"LABEL_{i}" for i in range(11)], None])
def test_folders_that_are_numbers_are_the_classes_of_these_numbers(tmp_path, processor, pattern, labels):
    """As texts they are sorted 0, 1, 10, 2."""
    for value in range(11):
        (tmp_path / "images" / pattern.format(value)).mkdir(parents=True)
        picture(value).save(tmp_path / "images" / pattern.format(value) / f"{value}.png")
    dataset = load_images(folder=str(tmp_path / "images"))
    config = config_with(*labels) if labels else PretrainedConfig(num_labels=11)
    images = ProcessedImages(dataset, processor, config)
    names = [name.split("/")[1] for name in image_names(dataset)]
    assert images.labels == [int(name.removesuffix(".png")) for name in names]


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["1", "2", "3"], ["LABEL_0", "LABEL_1", "LABEL_2"]),  # as long, but not the same numbers
        (["0", "1", "1"], ["0", "1", "2"]),
        (["1", "01"], ["LABEL_0", "LABEL_1"]),
        (["0", "1"], ["cat", "dog"]),
        (["1", "2"], ["LABEL_0"]),
    ],
)
def test_numbers_that_are_not_the_classifiers_are_refused(names, labels):
    with pytest.raises(ValueError, match="cannot be matched to the classifier's"):
        match_labels(names, config_with(*labels))


def test_one_label_without_a_name_is_absent_in_0_and_present_in_1():
    assert match_labels(["1", "0"], config_with("LABEL_0")) == [1, 0]


@pytest.mark.parametrize(
    ("names", "labels", "shown"),
    [
        (["cat", "dog"], ["LABEL_0", "LABEL_1"], "cat -> LABEL_0, dog -> LABEL_1"),
        (["no", "yes"], ["LABEL_0"], "no -> not LABEL_0, yes -> LABEL_0"),
        (["cat", "dog"], ["dog", "cat"], None),
        (["1", "0"], ["LABEL_0", "LABEL_1"], None),
    ],
)
def test_an_order_that_is_trusted_is_shown_without_any_logging_set_up(names, labels, shown, monkeypatch, capsys):
    """As in the benchmark, which sets up no logging: Python then prints warnings."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    match_labels(names, config_with(*labels))
    printed = capsys.readouterr().err
    assert (shown in printed) if shown else printed == ""


def test_messages_name_20_labels_at_most():
    with pytest.raises(ValueError, match=r"'name 19' and 980 more\] against \['other 0'") as error:
        match_labels([f"name {i}" for i in range(1000)], config_with(*[f"other {i}" for i in range(1000)]))
    assert len(str(error.value)) < 1000


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


def test_two_labels_of_one_name_are_taken_in_a_common_order():
    names = ["crane", "tench", "crane"]  # ImageNet has a bird and a machine of this name
    assert match_labels(names, PretrainedConfig(id2label=dict(enumerate(names)))) == [0, 1, 2]
    with pytest.raises(ValueError, match="cannot be matched"):
        match_labels(names, PretrainedConfig(id2label={0: "tench", 1: "crane", 2: "crane"}))
