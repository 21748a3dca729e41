"""Which files of a folder are its images, and of which class."""

import logging
import os

import datasets
import pytest
from image_files import picture

from salvage_hf.data.folders import find_images
from salvage_hf.data.loading import image_names, load_images


@pytest.fixture
def make(tmp_path):
    """A function: makes a folder with pictures under these names, and returns it."""

    def build(*names, folder="pictures"):
        for value, name in enumerate(names):
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(value).save(path, {".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF"}.get(path.suffix.lower(), "PNG"))
        return tmp_path / folder

    return build


def labelled(folder):
    """Name -> class of all images of a folder."""
    dataset = load_images(folder=str(folder))
    names = dataset.features["label"].names
    return {name: names[label] for name, label in zip(image_names(dataset), dataset["label"], strict=True)}


def test_the_order_is_that_of_imagefolder(make):
    """Scores are kept by the order of the images; earlier results keep their order."""
    names = ["cat/b.png", "cat/a.png", "cat/a b.png", "cat-2/B.png", "cat 1/é.JPG", "cat.x/10.png", "cat.x/9.png"]
    folder = make(*names, "Zebra/1.png", "cat/a.b.jpeg", "_cat/x.tif")
    ours = load_images(folder=str(folder))
    theirs = datasets.load_dataset("imagefolder", data_files={"train": f"{folder}/**"}, split="train")
    theirs = theirs.cast_column("image", datasets.Image(decode=False))
    assert [image["path"] for image in ours["image"]] == [image["path"] for image in theirs["image"]]
    assert ours["label"] == theirs["label"]
    assert ours.features["label"] == theirs.features["label"]
    assert ours[0]["image"]["bytes"] is None


def test_the_class_is_the_first_folder(make):
    folder = make("cat/2020/x.png", "cat/2021/y.png", "dog/2020/z.png", "dog/w.png")
    assert labelled(folder) == {"2020/x.png": "cat", "2021/y.png": "cat", "2020/z.png": "dog", "dog/w.png": "dog"}


def test_links_are_followed(make, tmp_path):
    elsewhere = make("1.png", "deeper/2.png", folder="elsewhere")
    folder = make("cat/3.png")
    (folder / "dog").symlink_to(elsewhere)
    (folder / "cat" / "4.png").symlink_to(elsewhere / "1.png")
    assert labelled(folder) == {"cat/3.png": "cat", "cat/4.png": "cat", "dog/1.png": "dog", "deeper/2.png": "dog"}
    (tmp_path / "all").symlink_to(folder)
    assert labelled(tmp_path / "all") == labelled(folder)


def test_links_that_lead_back_or_nowhere_are_named(make, caplog):
    folder = make("cat/1.png", "dog/2.png")
    (folder / "cat" / "up").symlink_to(folder)
    (folder / "dog" / "other").symlink_to(folder / "cat")
    (folder / "cat" / "other").symlink_to(folder / "dog")
    (folder / "cat" / "gone.png").symlink_to(folder / "nothing.png")
    (folder / "cat" / "itself.png").symlink_to(folder / "cat" / "itself.png")
    os.mkfifo(folder / "cat" / "pipe.png")
    paths, classes = find_images(str(folder))
    # Each link is followed once: cat/other is dog, and what lies in it belongs to cat.
    inside = [os.path.relpath(path, folder) for path in paths]
    assert inside == ["cat/1.png", "cat/other/2.png", "dog/2.png", "dog/other/1.png"]
    assert classes == ["cat", "cat", "dog", "dog"]
    for name, reason in (
        ("cat/up", "a link to a folder that holds it"),
        ("cat/gone.png", "a link to nothing"),
        ("cat/itself.png", "a link to nothing"),
        ("cat/pipe.png", "neither a file nor a folder"),
    ):
        assert f"{folder / name} ({reason})" in caplog.text


def test_a_warning_names_at_most_20_entries(make, caplog):
    folder = make("cat/1.png")
    for number in range(30):
        (folder / "cat" / f"gone_{number}.png").symlink_to(folder / "nothing.png")
    load_images(folder=str(folder))
    assert "30 left out" in caplog.text
    assert "and 10 more" in caplog.text


def test_files_are_taken_by_their_content(make):
    names = ["a/1.png", "a/2", "a/3.JPG", "a/4.jfif", "a/5.heic", "a/6.avif", "b/7.PNG", "b/8.jpeg", "b/9.final.x"]
    assert len(labelled(make(*names))) == len(names)


def test_files_that_look_like_images_are_never_lost(make):
    folder = make("cat/1.png", "dog/2.png")
    for name in ("cat/photo.heic", "cat/noext", "dog/movie.mp4", "cat/archive.zip", "cat/x.svg"):
        (folder / name).write_bytes(b"no image")
    with pytest.raises(ValueError, match="5 of 7 images cannot be read") as error:
        load_images(folder=str(folder))
    for name in ("cat/photo.heic", "cat/noext", "dog/movie.mp4", "cat/archive.zip", "cat/x.svg"):
        assert f"{name} (it is damaged or of another format" in str(error.value)
    assert len(load_images(folder=str(folder), on_bad_image="skip")) == 2


def test_hidden_files_and_texts_are_counted(make, caplog):
    folder = make("cat/1.png", "dog/2.png")
    for name in ("README.md", "cat/LICENSE", "cat/Thumbs.db", "dog/.DS_Store", "dog/2.json", "labels.TXT"):
        (folder / name).write_text("no image")
    (folder / ".cache").mkdir()
    (folder / "__MACOSX").mkdir()
    with caplog.at_level(logging.INFO, "salvage_hf.data"):
        assert len(labelled(folder)) == 2
    assert "8 entries are hidden, or no images by their names" in caplog.text


@pytest.mark.parametrize("beside", ["empty", "README.txt", ".hidden"])
def test_a_single_class_keeps_its_label(make, beside, caplog):
    folder = make("cat/1.png", "cat/2.png")
    (folder / beside).mkdir() if beside == "empty" else (folder / beside).write_text("")
    assert labelled(folder) == {"cat/1.png": "cat", "cat/2.png": "cat"}
    assert ("1 sub-folders without images are no classes: empty" in caplog.text) == (beside == "empty")


def test_images_beside_classes_are_refused(make):
    with pytest.raises(ValueError, match=r"beside them 2 images without a class: \w+.png, \w+.png; move them"):
        load_images(folder=str(make("cat/1.png", "stray.png", "lost.png")))


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "cat/metadata.csv"])
def test_metadata_files_are_refused(make, name):
    folder = make("cat/1.png", "dog/2.png")
    (folder / name).write_text("file_name,label\n")
    with pytest.raises(ValueError, match=f"holds .*{name}, but labels are the names of sub-folders"):
        load_images(folder=str(folder))


def test_a_name_that_is_not_utf_8_is_told(make):
    folder = make("cat/1.png", "dog/2.png")
    (folder / "dog" / "2.png").rename(os.fsdecode(os.fsencode(folder) + b"/dog/\xff.png"))
    with pytest.raises(ValueError, match=r"holds names that are not UTF-8.*dog/\\xff\.png; rename them"):
        load_images(folder=str(folder))


def test_a_folder_of_images_alone_has_no_labels(make, caplog):
    folder = make("1.png", "2.png")
    (folder / "empty").mkdir()
    assert load_images(folder=str(folder)).column_names == ["image"]
    assert "1 sub-folders without images are no classes: empty" in caplog.text


def test_no_cache_is_needed(make, tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file where the folder of the cache should be")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    assert len(labelled(make("cat/1.png", "dog/2.png"))) == 2


def test_pictures_with_the_names_of_texts_are_images(make):
    folder = make("notice/notice.png", "notice/license.JPG", "cat/readme.png")
    assert labelled(folder) == {"notice/notice.png": "notice", "notice/license.JPG": "notice", "cat/readme.png": "cat"}
