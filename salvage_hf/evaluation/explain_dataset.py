"""A whole data set explained: the maps and predictions of every image, as a data set in parquet shards.

The output folder holds data/SPLIT-NUMBER-DIGEST.parquet, whose rows `explained_rows` describes; explained.json with the
"settings" that all rows depend on and, when all is finished, a "summary"; README.md, the card of the data set; and
recipe.yaml. `load_dataset(FOLDER)` reads it.

Every shard is the work of one process: process p of P makes the shards p, p + P, and so on. So neither the number of
processes nor a kill changes the batches that images are computed in, and the rows are the same bit for bit; another
batch size or shard size changes the last digits at most. A shard is written whole or not at all, and its name ends in a
digest of settings and content: one that is damaged, or of another run, is made again.
"""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, Literal

import datasets
import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import broadcast_object_list
from datasets import Dataset, load_dataset
from tqdm.auto import tqdm
from transformers import AutoModel

from .. import attribution_methods
from ..arguments import NOT_IN_RECIPE, PRIVATE, AtLeast, AtMost, ImageArguments, arg
from ..attribution_methods import REGISTRY
from ..attribution_methods.trained import explainer_options
from ..data.images import ProcessedImages, content_digest
from ..data.labels import translated_labels
from ..data.loading import image_name, load_images, load_parts, reading_options
from ..data.sources import Source
from ..files import digest, fingerprint, locked, remove_leftovers, write_bytes, write_json
from ..hub.cards import write_dataset_card
from ..hub.publishing import create_repository, push_dataset, repository_name
from ..logs import show_log
from ..masking import MaskingArguments, load_classifier_of
from ..pretrained import load_model, public_name
from ..recipes import write_recipe
from ..training.setup import PROCESS_TIMEOUT
from ..version import VERSION
from .arguments import SAMPLING
from .explained_rows import SUMMARISED, Explained, Part, summary
from .loading import chosen_images, compared_split

logger = logging.getLogger(__name__)

#: The column of the positions of images in their data set, while they are loaded.
_POSITION = "position in the data set"

#: Stands among what was told for the pairs of labels that belong together.
_MATCHED = "labels were matched"

#: What goes to the Hub: the recipe names local folders.
_UPLOADED = ("data/*.parquet", "README.md", "explained.json")


@dataclass
class ExplainDatasetArguments(MaskingArguments, ImageArguments):
    """Arguments of `salvage explain-dataset`."""

    model_name_or_path: str = arg("", "The classifier: a name on the Hub or a folder.")
    explainer: str | None = arg(
        None, "A trained explainer of it: a folder, or a name on the Hub. Methods that are not trained need none."
    )
    method: Literal[tuple(REGISTRY)] | None = arg(  # type: ignore[valid-type]
        None, "The attribution method; when not given, that of the explainer's own objective."
    )
    allow_other_classifier: bool = arg(
        False, "Go on, with a warning, where the explainer states that it was trained for another classifier."
    )
    target: Literal["predicted", "label"] = arg(
        "predicted", "The explained class: what the classifier predicts for the image, or its label."
    )
    classes: Literal["target", "all"] = arg(
        "target",
        "Keep the map of the explained class [patches], or those of all classes [patches, classes], which takes one "
        "forward of a Salvage explainer, and with other methods a call per class.",
    )
    attributions_type: Literal["float32", "float16"] = arg("float32", "The type of the kept attributions.")
    sampling_budget: Annotated[int | None, AtLeast(1)] = arg(
        None, f"Subsets per image that the methods {', '.join(SAMPLING)} ask for; their own number when not given."
    )
    seed: Annotated[int, AtLeast(0), AtMost(2**32 - 1)] = arg(0, "The seed of everything random.")
    per_device_eval_batch_size: Annotated[int, AtLeast(1)] = arg(32, "Images per batch and process.")
    images_per_shard: Annotated[int, AtLeast(1)] = arg(
        256, "Images per parquet file: what a process works on at a time, holds in memory, and loses when it is killed."
    )
    output_dir: Annotated[str, PRIVATE] = arg(
        "outputs/explained", "The folder of the data set that is written; a stopped run in it goes on."
    )
    push_to_hub: bool = arg(False, "Upload the data set to the Hub, without the images.")
    hub_dataset_id: str | None = arg(None, "The repository to upload to; named like --output_dir when not given.")
    private: bool = arg(False, "Make the repository a private one, where there is none yet.")
    hub_token: Annotated[str | None, PRIVATE, NOT_IN_RECIPE] = arg(None, "The token for the upload.")

    def __post_init__(self):
        super().__post_init__()
        if not self.model_name_or_path:
            raise ValueError("model_name_or_path is needed: the classifier to explain")
        self.check_one_source()
        if self.method is None and self.explainer is None:
            raise ValueError("give explainer, or a method that needs none, for example method='rise'")
        if self.method is not None and bool(REGISTRY[self.method].objective) != bool(self.explainer):
            needs = "needs an explainer" if REGISTRY[self.method].objective else "asks no explainer"
            raise ValueError(f"the method {self.method!r} {needs}, got explainer={self.explainer!r}")
        if self.sampling_budget is not None and self.method not in SAMPLING:
            raise ValueError(f"sampling_budget is for the methods {', '.join(SAMPLING)}, got method={self.method!r}")


def run_explain_dataset(args: ExplainDatasetArguments) -> dict[str, Any]:
    """Explains every image of a data set; a run that was stopped makes the shards that are not there yet.

    A data set that is streamed is taken to be the same when a stopped run goes on; of others the content is compared.

    Returns:
        The summary of explained.json (`explained_rows.summary`), with "split" and "shards", the number of files.

    Raises:
        ValueError: where arguments, models and images do not fit each other, an answer is not finite, `output_dir`
            holds shards of other settings, or another process writes to it.
    """
    accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=PROCESS_TIMEOUT)])
    show_log(accelerator.is_main_process)
    with locked(args.output_dir, "salvage explain-dataset"):
        run = _Run(args, accelerator)
        run.begin()
        run.explain()
        return run.finish()


class _Run:
    """A data set that is being explained: the classifier, the method, the images and the shards."""

    def __init__(self, args: ExplainDatasetArguments, accelerator: Accelerator):
        self.args, self.accelerator, self.folder = args, accelerator, Path(args.output_dir)
        with accelerator.main_process_first():
            self.explained, self.made_with = _load(args, accelerator)
        self.v = self.explained.v
        self.source = Source.of(args)
        self.split = "validation" if self.source is None else compared_split(args, self.source)
        self.dataset: Dataset | None = None
        self.told: set[str] = set()  # what the log says of labels once, and not for every shard of a stream
        if not args.streaming:
            # All are read once before any work, so that broken ones show now.
            options = reading_options(args, None)
            dataset = load_images(self.source, args.validation_dir, self.split, **options, position_column=_POSITION)
            chosen = sorted(chosen_images(len(dataset), args.max_eval_samples, args.seed))
            self.dataset = dataset.select(chosen)
            self.labels = self._labels(self.dataset)

    def begin(self) -> None:
        """Compares the settings with those of an earlier run in the folder, and writes them with the recipe."""
        settings: dict[str, Any] = broadcast_object_list([self._settings() if self._is_main else None])[0]
        _check_same_settings(self.folder, settings)
        self.key = json.dumps(settings, sort_keys=True)
        self.accelerator.wait_for_everyone()  # all processes have read before one writes
        if self._is_main:
            (self.folder / "data").mkdir(exist_ok=True)
            remove_leftovers(self.folder / "data")
            write_json(self.folder / "explained.json", {"settings": settings})
            if self.args.push_to_hub:
                create_repository(self._repository, self.args.hub_token, "dataset", self.args.private)
        write_recipe(self.folder, "explain-dataset", self.args, accelerator=self.accelerator)
        self.settings = settings
        self.accelerator.wait_for_everyone()

    def explain(self) -> None:
        """Makes this process' shards that are not there yet."""
        share = " (the first process' share)" if self.accelerator.num_processes > 1 else ""
        bar = tqdm(desc=f"Explaining{share}", unit="image", disable=not self._is_main, total=self._own_images())
        finished: list[int] = []

        def wanted(number: int) -> bool:
            if not self._is_mine(number):
                return False
            if self._is_finished(number):
                finished.append(number)
                bar.update(self.args.images_per_shard if self.dataset is None else self._size_of(number))
                return False
            return True

        for number, part in self._parts(wanted):
            rows = self.explained.dataset(part, self.args.per_device_eval_batch_size)
            content = _parquet(rows)
            write_bytes(self._shard(number, digest(self.key, content)), content)
            bar.update(len(rows))
        bar.close()
        if finished:
            logger.info("%d shards were finished before", len(finished))

    def finish(self) -> dict[str, Any]:
        """Writes the summary and the card when all processes are done, and uploads the data set with --push_to_hub."""
        self.accelerator.wait_for_everyone()
        found: list[Any] = [None]
        if self._is_main:
            files = sorted(str(path) for path in (self.folder / "data").glob("*.parquet"))
            columns = [name for name in SUMMARISED if name in self.explained.features(1)]
            rows = load_dataset("parquet", data_files=files, columns=columns, split="train", streaming=True)
            found = [{**summary(iter(rows)), "split": self.split, "shards": len(files)}]
            write_json(self.folder / "explained.json", {"settings": self.settings, "summary": found[0]})
            write_dataset_card(
                self.folder,
                self.args,
                REGISTRY[self.explained.name].title,
                self.explained.features(1),
                found[0],
                self._repository,
            )
            if self.args.push_to_hub:
                push_dataset(self.folder, self._repository, self.args.hub_token, _UPLOADED, self.args.private)
        return broadcast_object_list(found)[0]

    # The images

    def _parts(self, wanted) -> Iterator[tuple[int, Part]]:
        """The images of the wanted shards, of which one shard's are in memory at a time."""
        args, size = self.args, self.args.images_per_shard
        if self.dataset is None:
            assert self.source is not None  # `ImageArguments` refuses streaming without a data set
            options = reading_options(args, args.max_eval_samples)
            for number, rows in load_parts(self.source, self.split, size, wanted, _POSITION, **options):
                yield number, self._part(rows, self._labels(rows))
            return
        for number, start in enumerate(range(0, len(self.dataset), size)):
            if wanted(number):
                places = range(start, start + self._size_of(number))
                yield number, self._part(self.dataset.select(places), [self.labels[place] for place in places])

    def _part(self, rows: Dataset, labels: list[int | None]) -> Part:
        column = self.args.image_column_name
        images = ProcessedImages(rows, self.v.processor, None, column, pixel_range=self.args.pixel_range)
        positions = list(rows[_POSITION])
        names = [image_name(image, index) for image, index in zip(images.images[column], positions, strict=True)]
        return Part(images, positions, names, labels)

    def _labels(self, rows: Dataset) -> list[int | None]:
        """The classifier's labels of the images; None where they are not needed, and there are none that fit."""
        column = self.args.label_column_name
        if self.args.target == "predicted" and column not in rows.column_names:
            return [None] * len(rows)
        try:
            labels = translated_labels(rows, column, self.v.config, tell=_MATCHED not in self.told)
            self.told.add(_MATCHED)
            return list(labels)
        except ValueError as error:
            if self.args.target == "label":
                raise
            if str(error) not in self.told:
                logger.warning("the column 'label' stays empty: %s", error)
            self.told.add(str(error))
            return [None] * len(rows)

    def _size_of(self, number: int) -> int:
        """The images of a shard, of a data set that is not streamed."""
        assert self.dataset is not None
        return min(self.args.images_per_shard, len(self.dataset) - number * self.args.images_per_shard)

    def _own_images(self) -> int | None:
        """The images of this process; None where they are streamed."""
        if self.dataset is None:
            return None
        numbers = range(-(-len(self.dataset) // self.args.images_per_shard))
        return sum(self._size_of(number) for number in numbers if self._is_mine(number))

    # The shards

    def _is_mine(self, number: int) -> bool:
        return number % self.accelerator.num_processes == self.accelerator.process_index

    def _shard(self, number: int, ending: str) -> Path:
        return self.folder / "data" / f"{self.split}-{number:05d}-{ending}.parquet"

    def _is_finished(self, number: int) -> bool:
        """Whether a shard is there, whole and of these settings; what else has its number is removed."""
        whole = False
        for path in sorted(self.folder.glob(f"data/{self.split}-{number:05d}-*.parquet")):
            if not whole and path == self._shard(number, digest(self.key, path.read_bytes())):
                whole = True
                continue
            logger.warning("%r is damaged, or of another run: its images are explained again", str(path))
            path.unlink()
        return whole

    @property
    def _is_main(self) -> bool:
        return self.accelerator.is_main_process

    @property
    def _repository(self) -> str:
        return repository_name(self.args.hub_dataset_id, self.args.output_dir)

    def _settings(self) -> dict[str, Any]:
        """All that the rows depend on."""
        args = self.args
        if self.dataset is None:
            assert self.source is not None
            content: dict[str, Any] = {"stream": public_name(self.source.name), "config": self.source.config_name}
            content |= {"labels": args.label_column_name, "images": args.max_eval_samples}
        else:
            images = ProcessedImages(self.dataset, self.v.processor, None, args.image_column_name)
            files = content_digest(images, list(range(len(images))))
            content = {"content": digest(files, repr(self.labels), repr(list(self.dataset[_POSITION])))}
        return {
            "classifier": fingerprint(self.v.classifier),
            "processor": digest(self.v.processor.to_json_string()),
            "masking": self.v.masking,
            "patch_size": self.v.patch_size,
            "precision": self.accelerator.mixed_precision,
            "method": self.explained.name,
            "made_with": self.made_with,
            "target": args.target,
            "classes": args.classes,
            "attributions_type": args.attributions_type,
            "seed": args.seed,
            "split": self.split,
            **content,
            "pixel_range": args.pixel_range,
            "images_per_shard": args.images_per_shard,
            "salvage_hf": VERSION,
        }


def _load(args: ExplainDatasetArguments, accelerator: Accelerator) -> tuple[Explained, dict[str, Any]]:
    """Classifier, explainer and method; and what the maps depend on beside classifier and images."""
    explainer = None if args.explainer is None else load_model(AutoModel, args.explainer, dtype=torch.float32)
    v = load_classifier_of(
        getattr(explainer, "config", None),
        args.model_name_or_path,
        args.masking,
        args.patch_size,
        mixed_precision=accelerator.mixed_precision,
    ).to(accelerator.device)
    # What is no explainer has no objective: the method refuses it by name.
    name = args.method or str(getattr(getattr(explainer, "config", None), "objective", "salvage"))
    budget = {} if args.sampling_budget is None else {"budget": args.sampling_budget}
    options = explainer_options(explainer, args.allow_other_classifier)
    method = attribution_methods.load(name, v, args.seed, **budget, **options)
    weights = {} if explainer is None else {"weights": fingerprint(explainer)}
    explained = Explained(
        v, name, method, explainer, args.target == "label", args.classes == "all", args.attributions_type
    )
    return explained, {**budget, **weights}


def _check_same_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Raises ValueError where a folder holds shards of other settings, or of settings that are not known."""
    file = folder / "explained.json"
    if not file.exists():
        if any(folder.glob("data/*.parquet")):
            raise ValueError(f"{str(folder)!r} holds data/*.parquet without explained.json; give another output_dir")
        return
    try:
        before = json.loads(file.read_text())["settings"]
        differ = {name: (before.get(name), value) for name, value in settings.items() if before.get(name) != value}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{str(file)!r} is damaged ({error!r}); give another output_dir") from error
    if differ:
        raise ValueError(
            f"{str(file)!r} is of a run with other settings (before, now): {differ}; give another output_dir"
        )


def _parquet(rows: Dataset) -> bytes:
    """Rows as the bytes of a parquet file."""
    buffer, shown = BytesIO(), not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        rows.to_parquet(buffer)
    finally:
        if shown:
            datasets.enable_progress_bars()
    return buffer.getvalue()


def dataset_table(found: dict[str, Any], folder: str) -> str:
    """The summary as lines of text."""
    lines = [
        f"{found['images']} images in {found['shards']} shards: load_dataset({folder!r}, split={found['split']!r})"
    ]
    for name in ("classifier_accuracy", "explainer_accuracy", "agreement"):
        if found.get(name) is not None:
            lines.append(f"{name.replace('_', ' ')}: {100 * found[name]:.1f}%")
    return "\n".join(lines)
