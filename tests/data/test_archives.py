"""The paper's data sets: miniatures of their archives, and what is wrong in an archive is named."""

import logging
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from archive_files import MAKERS, PETS, STUDIES, mura, pet, trimap
from image_files import config_with, picture, png
from transformers import BitImageProcessor

from salvage_hf import MaskedClassifier
from salvage_hf.data.images import ProcessedImages
from salvage_hf.data.loading import image_names, load_images
from salvage_hf.data.registry import DATASETS, known_dataset, repository_of
from salvage_hf.data.sources import Source
from salvage_hf.evaluation.arguments import BenchmarkArguments
from salvage_hf.evaluation.loading import load_labelled_images

KEEP = BitImageProcessor(size={"height": 20, "width": 20}, do_center_crop=False)


@pytest.fixture
def archive(tmp_path):
    """A factory: the folder of a miniature."""
    return lambda name: MAKERS[name](tmp_path / name)


def load(name, folder, split):
    return load_images(Source(name, archive=str(folder)), split=split)


def named(dataset):
    """Name of each image -> name of its label."""
    labels = dataset.features["label"]
    return dict(zip(image_names(dataset), map(labels.int2str, dataset["label"]), strict=True))


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_each_archive_has_the_splits_columns_and_labels_that_the_registry_states(archive, name):
    known, source = DATASETS[name], Source(name, archive=str(archive(name)))
    assert source.split_names() == list(known.splits)
    for split in known.splits:
        dataset = source.load(split)
        masks = {known.mask_column} - {None}
        assert set(dataset.column_names) == {*known.columns, *masks}
        assert dataset.features["label"].names == list(known.label_names)
    assert known.task == ("binary" if name == "mura" else "multi-class")
    assert len(known.label_names) == {"imagenette": 10, "pet": 37, "mura": 2, "wbc": 8}[name]


def test_imagenette(archive):
    folder = archive("imagenette")
    validation = named(load("imagenette", folder / "imagenette2", "validation"))  # the folder itself serves as well
    assert validation["n01440764/ILSVRC2012_val_00000010.JPEG"] == "tench"
    assert validation["n03888257/ILSVRC2012_val_00000019.JPEG"] == "parachute"
    assert len(validation) == len(named(load("imagenette", folder, "train"))) == 10


def test_pet(archive):
    folder = archive("pet")
    for split, own in (("train", "trainval"), ("test", "test")):
        labels = {f"images/{name}.jpg": name.rsplit("_", 1)[0].lower() for name in PETS if PETS[name][1] == own}
        assert named(load("pet", folder, split)) == labels


def test_the_region_of_a_pet_is_its_animal_without_the_border(archive):
    known = DATASETS["pet"]
    dataset = load("pet", archive("pet"), "test")
    images = ProcessedImages(dataset, KEEP, mask_column=known.mask_column, region_values=known.region_values)
    animal = np.zeros((20, 20), dtype=bool)
    animal[6:14, 6:14] = True
    assert all(np.array_equal(images[index]["masks"].numpy(), animal) for index in range(2))


def test_arguments_lead_to_the_archive_and_to_what_its_masks_mean(
    archive, tiny_classifier, save_processor, tmp_path, caplog
):
    names = DATASETS["pet"].label_names
    tiny_classifier(num_labels=37, id2label=dict(enumerate(names))).save_pretrained(tmp_path / "classifier")
    save_processor(tmp_path / "classifier")
    args = BenchmarkArguments(
        model_name_or_path=str(tmp_path / "classifier"),
        methods=["random"],
        dataset_name="pet",
        dataset_dir=str(archive("pet")),
        mask_column_name="mask",
    )
    v = MaskedClassifier.from_pretrained(args.model_name_or_path)
    with caplog.at_level(logging.INFO, "salvage_hf.data"):
        loaded = load_labelled_images(args, v, args.seed, args.mask_dir, args.mask_column_name)
    assert "'pet': the split 'test' validates; not used: train" in caplog.text
    assert dict(zip(loaded.names, loaded.labels, strict=True)) == {
        "images/yorkshire_terrier_9.jpg": 36,
        "images/Abyssinian_201.jpg": 0,
    }
    animal = torch.zeros(16, 16, dtype=torch.bool)  # what the processor's crop shows of it
    animal[4:12, 4:12] = True
    assert torch.equal(loaded.images[0]["masks"], animal)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (trimap((21, 20)), "its size is 21 x 20, the upright picture's 20 x 20"),
        (trimap().point(lambda value: 85 * value), r"it holds the value 85; values of this data set are \[1, 2, 3\]"),
    ],
)
def test_a_trimap_of_another_size_or_of_other_values_is_refused_by_name(archive, mask, message):
    folder = archive("pet")
    mask.save(folder / "annotations" / "trimaps" / "Abyssinian_201.png")
    known = DATASETS["pet"]
    images = ProcessedImages(load("pet", folder, "test"), KEEP, mask_column="mask", region_values=known.region_values)
    assert images[0]["masks"].any()
    with pytest.raises(ValueError, match=rf"mask '.*Abyssinian_201.png' cannot be used: {message}"):
        images[1]


def test_mura(archive):
    folder = archive("mura")
    renamed = (folder / "MURA-v1.1").rename(folder / "radiographs")
    for split, own in (("train", "train"), ("validation", "valid")):
        dataset = load("mura", folder, split)
        studies = [study for study, number in STUDIES.items() for _ in range(number) if study.startswith(own)]
        assert [f"{own}/{study}" for study in dataset["study"]] == studies
        assert list(dataset["patient"]) == [study.split("/")[2] for study in studies]
        assert list(dataset["label"]) == [int("positive" in study) for study in studies]
        assert [Path(image["path"]).parent for image in dataset["image"]] == [renamed / study for study in studies]


def test_cells_are_split_once_and_for_all_with_a_fifth_of_each_type(archive):
    folder = archive("wbc")
    splits = [load("wbc", folder, split) for split in ("train", "test")]
    paths = [[image["path"] for image in split["image"]] for split in splits]
    assert len({*paths[0], *paths[1]}) == len(paths[0]) + len(paths[1]) == 45
    for label, name in enumerate(DATASETS["wbc"].label_names):
        assert list(splits[1]["label"]).count(label) == (2 if name == "neutrophil" else 1)
    folder_of = {"neutrophil": {"Neutrophile Band", "Neutrophile Segment"}, "basophil": {"Basophile"}}
    for split in splits:
        for path, label in named(split).items():
            assert path.split("/")[0] in folder_of.get(label, {label.capitalize(), f"{label.capitalize()}e"})
    assert [image["path"] for image in load("wbc", folder, "test")["image"]] == paths[1]


def remove(*path):
    return lambda folder: shutil.rmtree(target) if (target := folder.joinpath(*path)).is_dir() else target.unlink()


def replaced(file, old, new):
    def change(folder):
        text = (folder / file).read_text()
        assert old in text
        (folder / file).write_text(text.replace(old, new))

    return change


WRIST = "MURA-v1.1/valid/XR_WRIST/patient11186/study1_negative"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("imagenette", remove("imagenette2", "val"), r"'.*imagenette2' does not hold: val; unpack the whole archive"),
        ("imagenette", remove("imagenette2", "val", "n03028079"), "val: no images in the folders: n03028079; unpack"),
        (
            "imagenette",
            lambda folder: (folder / "imagenette2/train/n03028079").rename(folder / "imagenette2/train/n0302807"),
            r"train: folders that are no classes: n0302807; classes are n01440764, ",
        ),
        ("pet", remove("annotations", "test.txt"), "pet' does not hold: annotations/test.txt; unpack the whole"),
        ("pet", remove("images", "Abyssinian_201.jpg"), r"files are missing: .*images/Abyssinian_201.jpg; unpack them"),
        (
            "pet",
            remove("annotations", "trimaps", "Abyssinian_201.png"),
            "missing: .*trimaps/Abyssinian_201.png; unpack",
        ),
        (
            "pet",
            replaced("annotations/test.txt", "yorkshire_terrier_9 37", "yorkshire_terrier_9 36"),
            r"test.txt: classes that are not those of the names: yorkshire_terrier_9 \(class 36\); 1 is abyssinian",
        ),
        ("pet", replaced("annotations/test.txt", "Abyssinian_201 1 1 1", "Lynx_1 1 1 1"), r"names: Lynx_1 \(class 1\)"),
        ("pet", replaced("annotations/test.txt", "n_201 1 1 1", "n_201 1"), r"not 4 columns: 'Abyssinian_201 1'"),
        ("mura", remove("MURA-v1.1", "valid_image_paths.csv"), "MURA-v1.1' does not hold: valid_image_paths.csv"),
        ("mura", remove(*WRIST.split("/"), "image1.png"), f"files are missing: .*{WRIST}/image1.png; unpack them"),
        (
            "mura",
            replaced("MURA-v1.1/valid_labeled_studies.csv", f"{WRIST}/,0", f"{WRIST}/,1"),
            rf"valid_labeled_studies.csv: labels that are not those of the names: {WRIST} \(label 1\); positive is 1",
        ),
        (
            "mura",
            replaced("MURA-v1.1/valid_labeled_studies.csv", f"{WRIST}/,0\n", ""),
            f"images of no labelled study: {WRIST}/image1.png; valid_labeled_studies.csv must hold each study",
        ),
        ("wbc", remove("Neutrophile Band"), "wbc' does not hold: Neutrophile Band; unpack the whole archive"),
        (
            "wbc",
            lambda folder: shutil.copytree(folder / "Monocyte", folder / "Platelet"),
            "folders that are no classes: Platelet",
        ),
    ],
)
def test_what_is_wrong_in_an_archive_is_named(archive, name, change, message):
    folder = archive(name)
    change(folder)
    with pytest.raises(ValueError, match=message) as refused:
        load(name, folder, DATASETS[name].splits[0])
    assert "\n" not in str(refused.value)


def test_patients_in_two_splits_are_named(tmp_path):
    folder = mura(tmp_path, {**STUDIES, "valid/XR_HAND/patient00012/study2_negative": 1})
    message = "the archive of MURA: values of 'patient' in both 'train' and 'validation': patient00012; each must be in"
    with pytest.raises(ValueError, match=message):
        load("mura", folder, "train")


def hub_copy(folder, splits):
    """A repository on the Hub: a parquet file for each split, from dictionaries of columns."""
    folder.mkdir()
    for name, (columns, label) in splits.items():
        features = {column: datasets.Value("string") for column in columns}
        features |= {"image": datasets.Image(), "label": label}
        datasets.Dataset.from_dict(columns, datasets.Features(features)).to_parquet(folder / f"{name}.parquet")
    return str(folder)


def radiographs(patients, labels):
    images = [png(picture(number)) for number in range(len(labels))]
    return {"image": images, "label": labels, "patient": patients, "study": patients}


def test_another_repository_stands_in_for_the_default_one_and_is_checked(tmp_path):
    texts = datasets.Value("string")
    right = {
        "train": (radiographs(["p1", "p2"], ["normal", "abnormal"]), texts),
        "validation": (radiographs(["p3", "p4"], ["abnormal", "normal"]), texts),
    }
    own = hub_copy(tmp_path / "right", right)
    train, validation = (load_images(f"mura={own}", split=split) for split in right)
    assert train.features["label"].names == ["normal", "abnormal"]  # the registry's order, not the alphabet's
    assert (list(train["label"]), list(validation["label"])) == ([0, 1], [1, 0])

    def changed(split, patients=("p3", "p4"), labels=("normal", "abnormal")):
        return {**right, split: (radiographs(list(patients), list(labels)), texts)}

    turned = datasets.ClassLabel(names=["abnormal", "normal"])
    wrong = {
        "no split 'validation', its splits are": {"train": right["train"]},
        "both 'train' and 'validation': p2": changed("validation", patients=["p2", "p4"]),
        r"labels \[broken\], which are not among \[normal, abnormal\]": changed("train", labels=["normal", "broken"]),
        r"has the labels \[abnormal, normal\] in its split 'train'; those of MURA are \[normal, abnormal\]": {
            name: ({**columns, "label": [0, 1]}, turned) for name, (columns, _) in right.items()
        },
        "has no column 'patient' in its split 'train', its columns are": {
            name: ({column: columns[column] for column in ("image", "label")}, label)
            for name, (columns, label) in right.items()
        },
    }
    for number, (message, splits) in enumerate(wrong.items()):
        name = hub_copy(tmp_path / f"wrong{number}", splits)
        with pytest.raises(ValueError, match=message):
            load_images(f"mura={name}")


def test_names_stand_for_repositories():
    assert repository_of("pet") == DATASETS["pet"].repository
    assert repository_of("pet=org/pets") == "org/pets"
    assert (repository_of("org/pets"), repository_of(None)) == ("org/pets", None)
    assert known_dataset("pet=org/pets") is DATASETS["pet"]
    assert known_dataset("org/pet") is known_dataset(None) is None


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Source("mura"), "no repository on the Hub is known for dataset_name='mura': give .* as dataset_dir, or "),
        (Source("pet", archive="nowhere"), "dataset_dir='nowhere' is not a folder"),
        (
            Source("org/pet", archive="x"),
            "dataset_dir='x' is the archive of one of imagenette, pet, mura, wbc; dataset_",
        ),
        (
            Source("pet=org/pet", archive="x"),
            "dataset_dir='x' is the archive of one of .*; dataset_name is 'pet=org/pet'",
        ),
        (Source("pet", streaming=True), "streaming is for a repository on the Hub by its own name, dataset_name='pet'"),
    ],
)
def test_sources_that_contradict_themselves(source, message):
    with pytest.raises(ValueError, match=message):
        load_images(source)


def test_labels_of_an_archive_become_those_of_the_classifier(archive, caplog):
    dataset = load("pet", archive("pet"), "test")
    names = ["Yorkshire Terrier", *(name for name in DATASETS["pet"].label_names if name != "yorkshire_terrier")]
    with caplog.at_level(logging.INFO, "salvage_hf.data"):
        assert ProcessedImages(dataset, KEEP, config_with(*names)).labels == [0, 1]
    assert "yorkshire_terrier -> Yorkshire Terrier" in caplog.text


def test_pet_is_a_folder_where_it_is_written_as_one(tmp_path):
    assert pet(tmp_path / "pet").is_dir()
    assert known_dataset(str(tmp_path / "pet")) is None
