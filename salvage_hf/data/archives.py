"""The original archives of the paper's data sets, unpacked: one function per layout.

Every function takes the folder of an archive, or one that holds this folder, and returns its splits: "image" (a path)
and "label", and the further columns that it names. It raises ValueError, with names, where files are missing or labels
contradict each other. The images themselves are opened by `load_images`.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value

from .folders import find_images, listed

#: Folders of ImageNette (WordNet's ids) and their labels.
OBJECTS = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}

#: Breeds of the Oxford-IIIT Pet data set, in the order of its class ids from 1 on.
BREEDS = (
    *("abyssinian", "american_bulldog", "american_pit_bull_terrier", "basset_hound", "beagle", "bengal", "birman"),
    *("bombay", "boxer", "british_shorthair", "chihuahua", "egyptian_mau", "english_cocker_spaniel"),
    *("english_setter", "german_shorthaired", "great_pyrenees", "havanese", "japanese_chin", "keeshond", "leonberger"),
    *("maine_coon", "miniature_pinscher", "newfoundland", "persian", "pomeranian", "pug", "ragdoll", "russian_blue"),
    *("saint_bernard", "samoyed", "scottish_terrier", "shiba_inu", "siamese", "sphynx", "staffordshire_bull_terrier"),
    *("wheaten_terrier", "yorkshire_terrier"),
)

#: Labels of MURA, in the order of its numbers.
FINDINGS = ("normal", "abnormal")

#: Folders of the white blood cells and their labels.
CELLS = {
    "Basophile": "basophil",
    "Eosinophile": "eosinophil",
    "Lymphoblast": "lymphoblast",
    "Lymphocyte": "lymphocyte",
    "Monocyte": "monocyte",
    "Myeloblast": "myeloblast",
    "Neutrophile Band": "neutrophil",
    "Neutrophile Segment": "neutrophil",
    "Normoblast": "normoblast",
}


def imagenette(folder: Path) -> DatasetDict:
    """ImageNette: train/n01440764/*.JPEG and val/n01440764/*.JPEG become the splits train and validation."""
    root = _root(folder, ["train", "val"])
    return DatasetDict(train=_of_folders(root / "train", OBJECTS), validation=_of_folders(root / "val", OBJECTS))


def pet(folder: Path) -> DatasetDict:
    """The Oxford-IIIT Pet data set: annotations/trainval.txt and test.txt become the splits train and test.

    A line of these is "Abyssinian_100 1 1 1": image, class from 1 to 37, species, breed of the species. The breed is
    in the image's name too, and the two must agree. The column "mask" is the trimap, annotations/trimaps/*.png: 1 the
    animal, 2 the background, 3 a border that is not classified.
    """
    lists = {"train": "annotations/trainval.txt", "test": "annotations/test.txt"}
    root = _root(folder, ["images", "annotations/trimaps", *lists.values()])
    numbers = {breed: str(number) for number, breed in enumerate(BREEDS, 1)}
    splits = DatasetDict()
    for split, name in lists.items():
        rows = _rows(root / name, " ", 4)
        wrong = [
            f"{image} (class {number})"
            for image, number, *_ in rows
            if number != numbers.get(image.rpartition("_")[0].lower())
        ]
        _refuse(wrong, f"{root / name}: classes that are not those of the names", f"1 is {BREEDS[0]}, 37 {BREEDS[-1]}")
        splits[split] = _dataset(
            BREEDS,
            image=[root / "images" / f"{image}.jpg" for image, *_ in rows],
            label=[int(number) - 1 for _, number, *_ in rows],
            mask=[root / "annotations" / "trimaps" / f"{image}.png" for image, *_ in rows],
        )
    return splits


def mura(folder: Path) -> DatasetDict:
    """MURA-v1.1: train_image_paths.csv and valid_image_paths.csv become the splits train and validation.

    A line of these is "MURA-v1.1/train/XR_ELBOW/patient00011/study1_positive/image1.png". A study's label is in
    train_labeled_studies.csv, "MURA-v1.1/train/XR_ELBOW/patient00011/study1_positive/,1", and in the name of the
    study's folder, and the two must agree. Further columns are "patient" and "study". The test images are not public.
    """
    names = {"train": "train", "validation": "valid"}
    root = _root(
        folder, [f"{name}_{what}.csv" for name in names.values() for what in ("image_paths", "labeled_studies")]
    )
    splits = DatasetDict()
    for split, name in names.items():
        paths = [Path(path) for (path,) in _rows(root / f"{name}_image_paths.csv", ",", 1)]
        table = f"{name}_labeled_studies.csv"
        labels = {Path(path): label for path, label in _rows(root / table, ",", 2)}
        of_name = {study: {"negative": "0", "positive": "1"}.get(study.name.rpartition("_")[2]) for study in labels}
        wrong = [f"{study} (label {label})" for study, label in labels.items() if label != of_name[study]]
        _refuse(wrong, f"{root / table}: labels that are not those of the names", "positive is 1, negative 0")
        wrong = [str(path) for path in paths if path.parent not in labels or len(path.parts) < 4]
        _refuse(wrong, f"{root}: images of no labelled study", f"{table} must hold each study")
        splits[split] = _dataset(
            FINDINGS,
            image=[root / Path(*path.parts[1:]) for path in paths],  # whatever the folder MURA-v1.1 is called now
            label=[int(labels[path.parent]) for path in paths],
            patient=[path.parts[-3] for path in paths],
            study=["/".join(path.parts[-4:-1]) for path in paths],
        )
    return splits


def wbc(folder: Path) -> DatasetDict:
    """White blood cells of Bodzas et al. (2023): nine folders, one per type, of cropped cells (BMP, 1200 x 1200).

    The archive (46 GB) was not at hand: the names of the folders are those that published code which reads it has. The
    paper on Salvage counts eight types and does not say which; here bands and segments of neutrophils are one. It does
    not say the split either; here a fifth of each type, drawn with seed 0, is the split test. The files do not say
    whose blood a cell is from, so a patient's cells may be in both splits.
    """
    cells = _of_folders(_root(folder, list(CELLS)), CELLS)
    return cells.train_test_split(test_size=0.2, seed=0, stratify_by_column="label")


def _root(folder: Path, needed: list[str]) -> Path:
    """The folder that holds what is needed: the given one, or one in it, because archives hold one folder."""
    missing = {
        root: [name for name in needed if not (root / name).exists()]
        for root in (folder, *sorted(path for path in folder.iterdir() if path.is_dir()))
    }
    root = min(missing, key=lambda candidate: len(missing[candidate]))
    _refuse(missing[root], f"dataset_dir={str(root)!r} does not hold", "unpack the whole archive")
    return root


def _of_folders(folder: Path, labels: dict[str, str]) -> Dataset:
    """The images in a folder with one sub-folder per key of `labels`, whose values are the labels."""
    paths, classes = find_images(str(folder))
    found = set(classes or [])
    _refuse(found - set(labels), f"{folder}: folders that are no classes", f"classes are {', '.join(labels)}")
    _refuse(set(labels) - found, f"{folder}: no images in the folders", "unpack the whole archive")
    names = tuple(dict.fromkeys(labels.values()))
    return _dataset(names, image=paths, label=[names.index(labels[name]) for name in classes or []])


def _rows(path: Path, separator: str, width: int) -> list[list[str]]:
    """The lines of a table, apart from empty ones and comments; each must have `width` columns."""
    lines = [line.strip() for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
    rows = [line.split(separator) for line in lines]
    wrong = [repr(line) for line, row in zip(lines, rows, strict=True) if len(row) != width]
    _refuse(wrong, f"{path}: lines that have not {width} columns", f"columns are separated by {separator!r}")
    return rows


def _dataset(label_names: tuple[str, ...], **columns: list[Any]) -> Dataset:
    """A split of these columns: "image" and "mask" are paths, which must exist."""
    kinds = {"image": Image(decode=False), "mask": Image(decode=False), "label": ClassLabel(names=list(label_names))}
    for name in ("image", "mask"):
        columns[name] = [str(path) for path in columns.get(name, [])]
        _refuse([path for path in columns[name] if not Path(path).is_file()], "files are missing", "unpack them")
    columns = {name: values for name, values in columns.items() if values}
    return Dataset.from_dict(columns, Features({name: kinds.get(name, Value("string")) for name in columns}))


def _refuse(wrong: Iterable[str], what: str, instead: str) -> None:
    """Raises ValueError where something is wrong: what it is, its names, and what would be right."""
    if names := sorted(wrong):
        raise ValueError(f"{what}: {listed(names)}; {instead}")
