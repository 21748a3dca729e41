"""Compares attribution methods on the same images: scores, maps and cost, saved after every batch."""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..data.images import ProcessedImages, content_digest
from ..data.processors import to_pictures
from ..files import digest, fingerprint, locked, remove_leftovers, write_json, write_tensors
from ..logs import show_log
from ..recipes import write_recipe
from ..targets import label_names, predicted_targets, target_attributions
from ..training.setup import PROCESS_TIMEOUT
from ..version import VERSION
from ..vision_families import image_logits
from .arguments import BenchmarkArguments
from .loading import load_classifier, load_labelled_images, load_methods
from .reading import earlier_results
from .results import measured_on, method_entry
from .scoring import Scorer

logger = logging.getLogger(__name__)

#: How many pictures are kept for the report: of scored images, and of images that Salvage gets wrong.
NUM_EXAMPLES, NUM_MISCLASSIFIED = 10, 6


def run_benchmark(args: BenchmarkArguments) -> dict[str, Any]:
    """Scores every method on every image; a run that was stopped continues after the last finished batch.

    Returns:
        What results.json holds (see `results`).

    Raises:
        ValueError: where `output_dir` holds results of other images, settings or weights of the classifier, or where
            an explainer was trained by another objective, for other labels or for another classifier, or where another
            process writes to `output_dir`.
    """
    accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=PROCESS_TIMEOUT)])
    show_log(accelerator.is_main_process)
    with locked(args.output_dir, "salvage benchmark"):
        run = _BenchmarkRun(args, accelerator)
        run.load_methods()
        run.begin()
        run.classify()
        run.score()
    return run.results


class _BenchmarkRun:
    """A benchmark: the classifier, the images, the methods and the results so far."""

    def __init__(self, args: BenchmarkArguments, accelerator: Accelerator):
        self.args, self.accelerator, self.folder = args, accelerator, Path(args.output_dir)
        with accelerator.main_process_first():
            # Only v(S) uses mixed precision: gradients in bfloat16 would make the methods that take them worse.
            self.v = load_classifier(args, accelerator.mixed_precision).to(accelerator.device)
        loaded = load_labelled_images(args, self.v, args.seed, args.mask_dir, args.mask_column_name)
        self.images, self.labels, self.names, self.chosen = loaded.images, loaded.labels, loaded.names, loaded.chosen

    def load_methods(self) -> None:
        """Loads explainers and methods; raises ValueError where one does not fit, before anything is measured."""
        loaded = load_methods(self.args, self.v)
        self.methods, self.explainers, self.weights = loaded.methods, loaded.explainers, loaded.weights
        # results.json keeps this with a method, to recognise results of other options or other weights.
        self.made_with = loaded.made_with

    def begin(self) -> None:
        """Takes up the results of an earlier run, drops what no longer holds, and writes the example pictures."""
        targets = [self.labels[index] for index in self.chosen]
        ids = [self.names[index] for index in self.chosen]
        self.measured: dict[str, Any] = {"settings": self._settings(), "ids": ids, "targets": targets}
        examples = spread_over_classes(targets, NUM_EXAMPLES)
        about = {
            "examples": examples,
            "label_names": label_names(self.v.config),
            "grid_size": list(self.v.patch_grid(self.images[0]["pixel_values"][None])),
        }
        earlier = earlier_results(self.folder, self.measured) or {"methods": {}, "classification": {}}
        self.results: dict[str, Any] = {**earlier, **self.measured, **about}
        for name in self.args.methods:
            self._drop_outdated(name)
        self._drop_other_predictions()
        self.accelerator.wait_for_everyone()  # all processes have read before one writes
        write_recipe(self.folder, "benchmark", self.args, accelerator=self.accelerator)
        if self.accelerator.is_main_process:
            (self.folder / "maps").mkdir(exist_ok=True)
            remove_leftovers(self.folder / "maps")
            pictures = self._pictures([self.chosen[position] for position in examples])
            write_tensors(self.folder / "examples.safetensors", {"pictures": pictures})
        self._write()

    def _settings(self) -> dict[str, Any]:
        """All that the scores of every method depend on, apart from the images' names."""
        args, chosen = self.args, self.chosen
        return {
            "classifier": fingerprint(self.v.classifier),
            "processor": digest(self.images.processor.to_json_string()),
            "masking": self.v.masking,
            "patch_size": self.v.patch_size,
            "precision": self.accelerator.mixed_precision,
            "rank": {"images": len(chosen[: args.max_rank_samples])},
            "relative": {
                **({"budget": args.budget} if args.budget else {"n_masks": args.n_masks}),
                "images": len(chosen[: args.max_relative_samples]),
            },
            "regions": args.has_regions,
            "content": content_digest(self.images, chosen),
            "seed": args.seed,
            "salvage_hf": VERSION,  # the methods and scores are its code
        }

    def _drop_outdated(self, name: str) -> None:
        """Removes a method's earlier result if its explainer had other weights, so that it is scored again.

        Raises:
            ValueError: where a method had other options.
        """
        made_with = self.made_with[name]
        before = self.results["methods"].get(name, {}).get("made_with", made_with)
        if before == made_with:
            return
        if {**before, "weights": None} != {**made_with, "weights": None}:
            path = str(self.folder / "results.json")
            raise ValueError(f"{path!r} holds {name} with {before}, here {made_with}; give another output_dir")
        logger.warning("%s is scored again: the explainer has other weights than before", name)
        del self.results["methods"][name]

    def _drop_other_predictions(self) -> None:
        """Removes earlier predictions if any image of the data set has other content, another name or another label."""
        content = digest(content_digest(self.images, list(range(len(self.images)))), *self.names)
        about = {"content": content, "labels": self.labels}
        if {name: self.results["classification"].get(name) for name in about} != about:
            self.results["classification"] = about
            self.results.pop("misclassified", None)

    def classify(self) -> None:
        """Keeps what the classifier, and every explainer by itself (eq. 6), predict for all images."""
        weights = {"classifier": self.measured["settings"]["classifier"]}
        weights |= self.weights
        classification = self.results["classification"]
        for name in weights:
            if classification.get(name, {}).get("weights") == weights[name]:
                continue
            model = self.explainers.get(name, self.v.classifier)
            batch_size = self.args.per_device_eval_batch_size
            predicted = predictions(self.accelerator, model, self.images, self.names, batch_size, name)
            if name == "salvage" and self.accelerator.is_main_process:
                if self.results.pop("misclassified", None):  # its file is about to change
                    self._write()
                self.results["misclassified"] = self._keep_misclassified(predicted)
            classification[name] = {"weights": weights[name], "predictions": predicted}
            self._write()

    def score(self) -> None:
        """Scores every method; results.json gets each as soon as it is complete."""
        images = Subset(self.images, self.chosen)
        scorer = Scorer(self.accelerator, self.v, images, self.names, self.args)
        for name, method in self.methods.items():
            rows = scorer.score(name, method, key=digest(json.dumps([self.measured, self.made_with[name]])))
            # A method that was finished before keeps what it was measured on.
            measured = self.results["methods"].get(name, {}).get("measured_on", measured_on(self.accelerator.device))
            self.results["methods"][name] = method_entry(rows, self.made_with[name], measured)
            self._write()

    def _write(self) -> None:
        if self.accelerator.is_main_process:
            write_json(self.folder / "results.json", self.results)

    def _pictures(self, indices: list[int]) -> torch.Tensor:
        """Images as the model sees them, uint8 [images, H, W, 3]."""
        return to_pictures(self._pixel_values(indices), self.images.processor)

    def _pixel_values(self, indices: list[int]) -> torch.Tensor:
        return torch.stack([item["pixel_values"] for item in self.images.__getitems__(indices)])

    @torch.no_grad()
    def _keep_misclassified(self, predicted: list[int]) -> dict[str, list]:
        """Keeps some images that Salvage gets wrong, with its maps of the predicted and of the true class.

        Returns:
            The names of these images, "ids", and their "predicted" and "true" classes.
        """
        wrong = [index for index, label in enumerate(self.labels) if predicted[index] != label][:NUM_MISCLASSIFIED]
        classes = {
            "predicted": [predicted[index] for index in wrong],
            "true": [self.labels[index] for index in wrong],
        }
        if wrong:
            explainer = self.explainers["salvage"]
            attributions = explainer(self._pixel_values(wrong).to(explainer.device)).attributions.cpu()
            maps = {kind: target_attributions(attributions, torch.tensor(targets)) for kind, targets in classes.items()}
            write_tensors(self.folder / "misclassified.safetensors", {"pictures": self._pictures(wrong), **maps})
        return {"ids": [self.names[index] for index in wrong], **classes}


@torch.no_grad()
def predictions(
    accelerator: Accelerator,
    model: PreTrainedModel,
    images: ProcessedImages,
    names: list[str],
    batch_size: int,
    title: str,
) -> list[int]:
    """The class that a model predicts for each image, the same list in all processes; `title` labels the bar.

    Raises:
        ValueError: where the model answers NaN or infinity; it gives the names of the images.
    """
    loader = accelerator.prepare(DataLoader(images, batch_size=batch_size))
    predicted = []
    for batch in tqdm(loader, desc=f"Classifying: {title}", disable=not accelerator.is_main_process):
        logits = image_logits(model, batch["pixel_values"])
        if bad := [names[index] for index in batch["ids"][~logits.isfinite().all(dim=1)].tolist()]:
            raise ValueError(f"{title} answers NaN or infinity to {bad[:10]}: leave them out, or give another model")
        predicted.append(accelerator.gather_for_metrics(predicted_targets(logits)))
    return torch.cat(predicted).tolist()


def spread_over_classes(targets: list[int], number: int) -> list[int]:
    """Positions of `number` images: the first of every class, then the second of every class, and so on."""
    seen: dict[int, int] = {}
    turns = []
    for position, target in enumerate(targets):
        seen[target] = seen.get(target, -1) + 1
        turns.append((seen[target], target, position))
    return [position for *_, position in sorted(turns)[:number]]
