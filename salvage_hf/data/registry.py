"""The paper's data sets by name: where each is found, and what must be in it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from datasets import ClassLabel, DatasetDict

from . import archives
from .folders import listed
from .labels import encode_labels, plain_name


@dataclass(frozen=True)
class KnownDataset:
    """A data set of the paper.

    Args:
        title: its name in tables.
        source: who published it, and where.
        from_archive: reads its original archive, unpacked in a folder.
        splits: the splits that it has.
        label_names: its labels, in their order; of two, the second one is what is looked for.
        repository: its default repository on the Hub, in parquet form; None where none is known that has these columns.
        config: the repository's configuration, where it has several.
        columns: the columns that it has wherever it is found.
        group_column: a column whose values (patients) must not be in two splits.
        mask_column: the column of annotated regions, in the archive.
        region_values: value of a mask's pixels -> whether they belong to the region.
    """

    title: str
    source: str
    from_archive: Callable[[Path], DatasetDict]
    splits: tuple[str, ...]
    label_names: tuple[str, ...]
    repository: str | None = None
    config: str | None = None
    columns: tuple[str, ...] = ("image", "label")
    group_column: str | None = None
    mask_column: str | None = None
    region_values: Mapping[int, bool] | None = None

    @property
    def task(self) -> str:
        """The kind of task: "binary" (with --one_label, one probability) or "multi-class"."""
        return "binary" if len(self.label_names) == 2 else "multi-class"

    def checked(self, splits: DatasetDict, where: str) -> DatasetDict:
        """The splits, with labels that have names.

        Raises:
            ValueError: where a split or a column is missing, labels are others, or a group is in two splits.
        """
        if missing := [name for name in self.splits if name not in splits]:
            raise ValueError(f"{where} has no split {missing[0]!r}, its splits are {list(splits)}")
        for name, split in splits.items():
            if missing := [column for column in self.columns if column not in split.column_names]:
                raise ValueError(
                    f"{where} has no column {missing[0]!r} in its split {name!r}, its columns are {split.column_names}"
                )
            splits[name] = encode_labels(split, "label", list(self.label_names))
            feature = splits[name].features["label"]
            names = feature.names if isinstance(feature, ClassLabel) else [str(feature)]
            if [plain_name(label) for label in names] != [plain_name(label) for label in self.label_names]:
                raise ValueError(
                    f"{where} has the labels [{listed(names)}] in its split {name!r}; those of {self.title} are "
                    f"[{listed(self.label_names)}], in this order"
                )
        if self.group_column is not None:
            groups = {name: set(split[self.group_column]) for name, split in splits.items()}
            for one, other in combinations(groups, 2):
                if shared := sorted(groups[one] & groups[other]):
                    raise ValueError(
                        f"{where}: values of {self.group_column!r} in both {one!r} and {other!r}: {listed(shared)}; "
                        "each must be in one split only"
                    )
        return splits


#: Every data set of the paper. That the repositories exist is taken from their pages; the columns and labels that are
#: stated here are checked when one is loaded, and NAME=REPOSITORY takes another one in their place. None is known that
#: keeps the patients of MURA, whose licence forbids copies, nor one of the white blood cells.
DATASETS = {
    "imagenette": KnownDataset(
        title="ImageNette",
        source="Howard & Gugger, 2020, https://github.com/fastai/imagenette",
        from_archive=archives.imagenette,
        splits=("train", "validation"),
        label_names=tuple(archives.OBJECTS.values()),
        repository="frgfm/imagenette",
        config="full_size",
    ),
    "pet": KnownDataset(
        title="Pet",
        source="Parkhi et al., 2012, https://www.robots.ox.ac.uk/~vgg/data/pets",
        from_archive=archives.pet,
        splits=("train", "test"),
        label_names=archives.BREEDS,
        repository="timm/oxford-iiit-pet",
        mask_column="mask",
        # The border is not classified. As PASCAL VOC's, it belongs to no region.
        region_values={1: True, 2: False, 3: False},
    ),
    "mura": KnownDataset(
        title="MURA",
        source="Rajpurkar et al., 2018, https://stanfordmlgroup.github.io/competitions/mura",
        from_archive=archives.mura,
        splits=("train", "validation"),
        label_names=archives.FINDINGS,
        columns=("image", "label", "patient", "study"),
        group_column="patient",
    ),
    "wbc": KnownDataset(
        title="WBC",
        source="Bodzas et al., 2023, https://doi.org/10.6084/m9.figshare.22680517",
        from_archive=archives.wbc,
        splits=("train", "test"),
        label_names=tuple(dict.fromkeys(archives.CELLS.values())),
    ),
}


def known_dataset(dataset_name: str | None) -> KnownDataset | None:
    """The data set that NAME or NAME=REPOSITORY stands for; None for other names."""
    return DATASETS.get((dataset_name or "").partition("=")[0])


def repository_of(dataset_name: str | None) -> str | None:
    """The repository (or the folder) that a name stands for: of NAME its default, of NAME=REPOSITORY that one."""
    known = known_dataset(dataset_name)
    if known is None or dataset_name is None:
        return dataset_name
    return dataset_name.partition("=")[2] or known.repository
