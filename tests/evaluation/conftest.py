"""What the tests of reports share: made-up folders of a benchmark and of an ablation."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from salvage_hf.evaluation.arguments import BenchmarkArguments
from salvage_hf.evaluation.results import arms_with
from salvage_hf.evaluation.scores import SCORES
from salvage_hf.modeling import SalvageModel

MADE_UP_METHODS = ("salvage", "vit_shapley", "rise", "last_attention", "random")
CURVES = ("lif", "mif", "r_lif", "r_mif")


@pytest.fixture
def make_benchmark(tmp_path):
    """A factory: the output folder of a benchmark with made-up scores."""

    def make(name="Pets", num_labels=3, regions=True, seed=0, num_images=8):
        rng = np.random.default_rng(seed)
        folder = tmp_path / name
        (folder / "maps").mkdir(parents=True)
        labels = rng.integers(0, max(num_labels, 2), 40).tolist()
        columns = [score.name for score in SCORES.values() if regions or score.family != "region"]
        methods = {}
        for method in MADE_UP_METHODS:
            scores = {column: rng.random(num_images).round(3).tolist() for column in columns}
            if regions:
                scores["rra"][0] = scores["rma"][0] = scores["rma"][3] = None
            curves = {curve: rng.random(4).round(3).tolist() for curve in CURVES}
            methods[method] = {**scores, "curves": curves, "forwards": 1234.5, "seconds": 0.25, "made_with": {}}
            save_file({"attributions": torch.rand(num_images, 4)}, folder / "maps" / f"{method}.safetensors")
        predictions = {
            model: {"weights": "", "predictions": [x if rng.random() < 0.8 else 0 for x in labels]}
            for model in ("classifier", "salvage", "vit_shapley")
        }
        results = {
            "settings": {"rank": {"images": num_images}, "relative": {"n_masks": 4, "images": 5}},
            "ids": [f"{i}.png" for i in range(num_images)],
            "targets": labels[:num_images],
            "examples": [0, 3],
            "label_names": [f"kind {i}" for i in range(num_labels)],
            "grid_size": [2, 2],
            "methods": methods,
            "classification": {"labels": labels, **predictions},
            "misclassified": {"ids": ["9.png"], "predicted": [1], "true": [0]},
        }
        (folder / "results.json").write_text(json.dumps(results))
        pictures = torch.randint(0, 255, (2, 8, 8, 3), dtype=torch.uint8)
        save_file({"pictures": pictures}, folder / "examples.safetensors")
        wrong = {"pictures": pictures[:1].contiguous(), "predicted": torch.rand(1, 4), "true": torch.rand(1, 4)}
        save_file(wrong, folder / "misclassified.safetensors")
        return str(folder), results

    return make


@pytest.fixture
def benchmark_arguments(tiny_classifier, save_processor, tmp_path):
    """A factory: arguments of a benchmark of a tiny classifier, its explainer and random pictures."""
    classifier = tiny_classifier("dinov2_with_registers")
    classifier.save_pretrained(tmp_path / "classifier")
    save_processor(tmp_path / "classifier")
    torch.manual_seed(0)  # the explainer must get some images wrong, whichever test ran before
    explainer = SalvageModel.from_classifier(classifier)
    torch.nn.init.normal_(explainer.head.class_projection.weight)
    explainer.save_pretrained(tmp_path / "explainer")
    rng = np.random.default_rng(0)
    for label in range(3):
        folder = tmp_path / "images" / f"LABEL_{label}"
        folder.mkdir(parents=True)
        for number in range(3):
            Image.fromarray(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(folder / f"{number}.png")

    def build(**changes):
        needs_explainer = {"salvage", "salvage_refined"} & set(changes.get("methods", ["salvage"]))
        return BenchmarkArguments(
            **{
                "model_name_or_path": str(tmp_path / "classifier"),
                "explainers": [f"salvage={tmp_path / 'explainer'}"] if needs_explainer else [],
                "validation_dir": str(tmp_path / "images"),
                "max_eval_samples": 7,
                "n_masks": 2,
                "output_dir": str(tmp_path / "out"),
                **changes,
            }
        )

    return build


@pytest.fixture
def ablation(tmp_path):
    folder = tmp_path / "ablation"
    folder.mkdir()
    rng = np.random.default_rng(0)
    arms = {
        name: {
            str(seed): {
                "history": [{"step": 10}, *({"step": step, "eval_srg": rng.random()} for step in (25, 50, 75, 100))],
                "r_srg": rng.random(6).tolist(),
                "srg": rng.random(6).tolist(),
            }
            for seed in range(3)
        }
        for name in arms_with([4.0])
    }
    content = {"settings": {"max_train_steps": 100}, "arms": arms, "exponents": [4.0]}
    (folder / "ablation.json").write_text(json.dumps(content))
    return str(folder), content
