"""Where the splits of a data set come from: an archive, a folder that `datasets` wrote or reads, or the Hub."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import (
    Dataset,
    DatasetDict,
    Features,
    Image,
    IterableDataset,
    get_dataset_split_names,
    load_dataset,
    load_from_disk,
)

from ..arguments import ImageArguments
from .registry import DATASETS, known_dataset, repository_of

logger = logging.getLogger(__name__)

#: What `save_to_disk` writes: the first for a data set with splits, the second for one without.
SAVED = ("dataset_dict.json", "state.json")

#: Images among which a streamed one is drawn.
SHUFFLE_BUFFER = 1000


@dataclass(frozen=True)
class Source:
    """A data set by name.

    Args:
        name: of `DATASETS`, also as NAME=REPOSITORY; of a repository on the Hub; or a folder, of files that
            `load_dataset` reads or that `save_to_disk` has written (a single data set there is the split "train").
        config_name: the configuration of a repository with several.
        archive: for a name of `DATASETS`, the folder of its original archive, which is read in place of a repository.
        streaming: read a data set on the Hub only as far as the images that are used need.
    """

    name: str
    config_name: str | None = None
    archive: str | None = None
    streaming: bool = False

    @classmethod
    def of(cls, args: ImageArguments) -> "Source | None":
        """The data set that the arguments name; None where they name folders of images."""
        if args.dataset_name is None:
            return None
        return cls(args.dataset_name, args.dataset_config_name, args.dataset_dir, args.streaming)

    def split_names(self) -> list[str]:
        """The names of the splits; raises ValueError where the data set cannot be loaded."""
        splits = self._at_hand()
        if splits is not None:
            return list(splits)
        with _in_one_sentence(f"the list of splits of {self.name!r}"):
            return get_dataset_split_names(self.name, self.config_name)

    def load(self, split: str, max_samples: int | None = None) -> Dataset:
        """A split; of a data set that is streamed, `max_samples` images.

        Raises:
            ValueError: where there is no such split, the data set cannot be loaded, or a registered one has other
                columns, labels or groups than it should.
        """
        splits = self._at_hand()
        if splits is not None:
            if split not in splits:
                raise ValueError(f"data set {self.name!r} has no split {split!r}, its splits are {list(splits)}")
            return splits[split]
        with _in_one_sentence(f"the split {split!r} of {self.name!r}"):
            if not self.streaming:
                return load_dataset(self.name, self.config_name, split=split)
        return self._streamed(split, max_samples)

    def _at_hand(self) -> DatasetDict | None:
        """All splits, of what is read as a whole; None for what `load_dataset` reads split by split."""
        known, repository = known_dataset(self.name), repository_of(self.name)
        is_saved = any(Path(self.name, file).is_file() for file in SAVED)
        if self.streaming and (known is not None or is_saved):
            raise ValueError(
                f"streaming is for a repository on the Hub by its own name, dataset_name={self.name!r} is read whole"
            )
        if self.archive is not None:
            if known is None or "=" in self.name:
                raise ValueError(
                    f"dataset_dir={self.archive!r} is the archive of one of {', '.join(DATASETS)}; dataset_name is "
                    f"{self.name!r}"
                )
            if not Path(self.archive).is_dir():
                raise ValueError(f"dataset_dir={self.archive!r} is not a folder")
            return known.checked(known.from_archive(Path(self.archive)), f"the archive of {known.title}")
        if known is not None:
            if repository is None:
                raise ValueError(
                    f"no repository on the Hub is known for dataset_name={self.name!r}: give the folder of its "
                    f"unpacked archive ({known.source}) as dataset_dir, or dataset_name='{self.name}=REPOSITORY'"
                )
            config = self.config_name or (known.config if repository == known.repository else None)
            with _in_one_sentence(f"{self.name!r} from {repository!r}"):
                splits = load_dataset(repository, config)
            return known.checked(splits, f"{repository!r} for {known.title}")
        if is_saved:
            with _in_one_sentence(f"what save_to_disk wrote to {self.name!r}"):
                saved = load_from_disk(self.name)
            return saved if isinstance(saved, DatasetDict) else DatasetDict(train=saved)
        return None

    def stream(self, split: str, max_samples: int | None = None) -> Iterator[dict[str, Any]]:
        """The rows of a split one after the other, with images undecoded, without keeping them.

        Args:
            split: the split.
            max_samples: how many are drawn, from a buffer that its files, in a random order, go through; all of them,
                in their order, when None.

        Raises:
            ValueError: as in `load`, and where a row cannot be read.
        """
        if (splits := self._at_hand()) is not None:
            raise ValueError(f"the data set {self.name!r} is read whole, with the splits {list(splits)}")
        with _in_one_sentence(f"the split {split!r} of {self.name!r}"):
            yield from self._undecoded(split, max_samples)

    def features(self, split: str) -> Features | None:
        """The columns of a split that is streamed, images undecoded; None where its files do not state them."""
        with _in_one_sentence(f"the split {split!r} of {self.name!r}"):
            return self._undecoded(split, None).features

    def _undecoded(self, split: str, max_samples: int | None) -> IterableDataset:
        stream = load_dataset(self.name, self.config_name, split=split, streaming=True)
        for column, feature in (stream.features or {}).items():
            if isinstance(feature, Image):
                stream = stream.cast_column(column, Image(decode=False))
        return stream if max_samples is None else stream.shuffle(seed=0, buffer_size=SHUFFLE_BUFFER).take(max_samples)

    def _streamed(self, split: str, max_samples: int | None) -> Dataset:
        """So many images of a split, in memory, drawn from a buffer that its files, in a random order, go through."""
        if max_samples is None:
            raise ValueError(
                "streaming needs max_train_samples and max_eval_samples: images are read many times, in any order, so "
                "those that are used are kept in memory"
            )
        with _in_one_sentence(f"the split {split!r} of {self.name!r}"):
            stream = self._undecoded(split, max_samples)
            return Dataset.from_list(list(stream), features=stream.features)


def validation_split(
    args: ImageArguments, source: Source, names: tuple[str, ...], required: bool = False
) -> str | None:
    """The split of a data set for validation: the one that the arguments name, or the first of `names` that it has.

    The log names the splits that are left, so that none is passed over silently.

    Args:
        args: with `validation_split_name`, and `train_split_name` where there is training.
        source: the data set.
        names: names of splits for validation.
        required: refuse a data set with none of them.

    Returns:
        Its name; None where the data set has none of them, so that a part of the training images validates.

    Raises:
        ValueError: where there is no split of the given name, or none is found and `required`.
    """
    splits, chosen = source.split_names(), args.validation_split_name
    if chosen is not None and chosen not in splits:
        raise ValueError(f"validation_split_name={chosen!r} is no split of {source.name!r}; its splits are {splits}")
    chosen = chosen or next((name for name in names if name in splits), None)
    if chosen is None and required:
        raise ValueError(
            f"data set {source.name!r} has no split {' or '.join(map(repr, names))}, its splits are {splits}; name one "
            "by validation_split_name"
        )
    left = [name for name in splits if name not in (chosen, getattr(args, "train_split_name", None))]
    if left:
        logger.info(
            "%r: %s; not used: %s (validation_split_name takes one)",
            source.name,
            "a share of the training images validates" if chosen is None else f"the split {chosen!r} validates",
            ", ".join(left),
        )
    return chosen


@contextmanager
def _in_one_sentence(what: str) -> Iterator[None]:
    """Raises ValueError with all causes where `datasets` cannot load what is named."""
    try:
        yield
    except Exception as error:  # `datasets` and what it uses raise many types of exception
        # `datasets` hides the cause in a general "error occurred while generating the dataset".
        causes: list[BaseException] = [error]
        while cause := causes[-1].__cause__ or causes[-1].__context__:
            causes.append(cause)
        reasons = dict.fromkeys(" ".join(f"{type(cause).__name__}: {cause}".split()) for cause in causes)
        raise ValueError(f"{what} cannot be loaded: {'; '.join(reasons)}") from error
