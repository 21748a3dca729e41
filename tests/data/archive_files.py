"""Miniatures of the paper's four archives, each in the layout of its authors."""

from image_files import picture
from PIL import Image

from salvage_hf.data import archives

#: Image of the Pet archive -> class and split, as its own lists have them.
PETS = {
    "Abyssinian_100": (1, "trainval"),
    "american_bulldog_3": (2, "trainval"),
    "Egyptian_Mau_14": (12, "trainval"),
    "yorkshire_terrier_9": (37, "test"),
    "Abyssinian_201": (1, "test"),
}
#: Study of MURA -> its images; train and valid in one.
STUDIES = {
    "train/XR_ELBOW/patient00011/study1_negative": 2,
    "train/XR_HAND/patient00011/study1_positive": 1,
    "train/XR_HAND/patient00012/study1_positive": 3,
    "valid/XR_WRIST/patient11185/study1_positive": 2,
    "valid/XR_WRIST/patient11186/study1_negative": 1,
}


def imagenette(folder):
    number = 0
    for split in ("train", "val"):
        for name in archives.OBJECTS:
            (folder / "imagenette2" / split / name).mkdir(parents=True)
            picture(number).save(folder / "imagenette2" / split / name / f"ILSVRC2012_val_{number:08d}.JPEG")
            number += 1
    (folder / "imagenette2" / "noisy_imagenette.csv").write_text("path,noisy_labels_0\n")
    return folder


def trimap(size=(20, 20)):
    """A square of 8 x 8 pixels of the animal (1), with a border of 2 pixels (3), on background (2)."""
    mask = Image.new("L", size, 2)
    mask.paste(3, (4, 4, 16, 16))
    mask.paste(1, (6, 6, 14, 14))
    return mask


def pet(folder):
    (folder / "images").mkdir(parents=True)
    (folder / "annotations" / "trimaps").mkdir(parents=True)
    lines = {"trainval": "", "test": ""}
    for number, (name, (label, split)) in enumerate(PETS.items()):
        picture(number).save(folder / "images" / f"{name}.jpg")
        trimap().save(folder / "annotations" / "trimaps" / f"{name}.png")
        lines[split] += f"{name} {label} {1 if name[0].isupper() else 2} 1\n"
    picture(9).save(folder / "images" / "Bombay_1.jpg")  # in no list
    for split, text in lines.items():
        (folder / "annotations" / f"{split}.txt").write_text(text)
    (folder / "annotations" / "list.txt").write_text("#Image CLASS-ID SPECIES BREED ID\n" + "".join(lines.values()))
    return folder


def mura(folder, studies=STUDIES):
    root = folder / "MURA-v1.1"
    tables = {
        f"{split}_{table}.csv": "" for split in ("train", "valid") for table in ("image_paths", "labeled_studies")
    }
    for study, number in studies.items():
        (root / study).mkdir(parents=True)
        split = study.split("/")[0]
        tables[f"{split}_labeled_studies.csv"] += f"MURA-v1.1/{study}/,{int(study.endswith('positive'))}\n"
        for index in range(1, number + 1):
            picture(index, mode="L").save(root / study / f"image{index}.png")
            (root / study / f"._image{index}.png").write_bytes(b"left by a Mac")
            tables[f"{split}_image_paths.csv"] += f"MURA-v1.1/{study}/image{index}.png\n"
    for name, text in tables.items():
        (root / name).write_text(text)
    return folder


def wbc(folder):
    for name in archives.CELLS:
        (folder / name).mkdir(parents=True)
        for number in range(5):
            picture(number).save(folder / name / f"{number}.bmp")
    return folder


MAKERS = {"imagenette": imagenette, "pet": pet, "mura": mura, "wbc": wbc}
