"""What the tests of training share: images, classifiers, and an uninterrupted run."""

import datasets
import pytest
from tiny_runs import CLASSES, NUM_TRAIN, forget_accelerators, make_arguments, write_classifier, write_images

from salvage_hf.training.explainer import train_explainer


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets_cache"))
        patch.setenv("ACCELERATE_USE_CPU", "true")
        yield


@pytest.fixture(autouse=True)
def each_run_as_in_a_process_of_its_own():
    forget_accelerators()


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A folder with images in train/ and validation/, and classifiers in classifier/ and one_label/."""
    folder = tmp_path_factory.mktemp("data")
    write_images(folder / "train", NUM_TRAIN // 2, seed=0)
    write_images(folder / "validation", 3, seed=1)
    (folder / "validation" / CLASSES[0] / "2.png").unlink()  # leaves 5 images, which no batch size divides
    write_classifier(folder / "classifier", ("English springer", "tench"))
    write_classifier(folder / "one_label", ("tench",))
    return folder


@pytest.fixture
def arguments(data, tmp_path):
    """A factory: the arguments of a short run that writes to tmp_path/run."""
    return lambda **changes: make_arguments(data, **{"output_dir": tmp_path / "run", **changes})


@pytest.fixture(scope="session")
def straight(data, tmp_path_factory):
    """The folder of an uninterrupted run of 8 steps."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    forget_accelerators()
    train_explainer(make_arguments(data, folder))
    return folder
