"""The comparison of methods: resumable, independent of batch size, and right."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from salvage_hf import MaskedClassifier, attribution_methods, benchmark
from salvage_hf.benchmark import BenchmarkArguments, fingerprint, markdown_table, run_benchmark
from salvage_hf.data import open_image
from salvage_hf.faithfulness import rank_scores, relative_scores
from salvage_hf.modeling import SalvageModel


@pytest.fixture
def arguments(tiny_classifier, save_processor, tmp_path):
    classifier = tiny_classifier("dinov2_with_registers")
    classifier.save_pretrained(tmp_path / "classifier")
    save_processor(tmp_path / "classifier")
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
        return BenchmarkArguments(
            **{
                "model_name_or_path": str(tmp_path / "classifier"),
                "explainer": str(tmp_path / "explainer"),
                "validation_dir": str(tmp_path / "images"),
                "max_eval_samples": 7,
                "n_masks": 2,
                "output_dir": str(tmp_path / "out"),
                **changes,
            }
        )

    return build


def test_scores_are_those_of_single_images(arguments, tmp_path):
    args = arguments()
    results = run_benchmark(args)
    assert len(results["ids"]) == 7
    v = MaskedClassifier.from_pretrained(args.model_name_or_path)
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(args.model_name_or_path)
    all_names = sorted(str(p.relative_to(tmp_path / "images")) for p in (tmp_path / "images").rglob("*.png"))
    for name in ("last_attention", "salvage"):
        options = {"explainer": args.explainer} if name == "salvage" else {}
        method = attribution_methods.load(name, classifier=v, **options)
        for position, (image, target) in enumerate(zip(results["ids"], results["targets"], strict=True)):
            assert f"LABEL_{target}" in image
            pixels = processor(open_image(tmp_path / "images" / image), return_tensors="pt")["pixel_values"]
            targets, ids = torch.tensor([target]), torch.tensor([all_names.index(image)])
            attributions = method(pixels, targets)
            rank = rank_scores(v, pixels, attributions, targets, args.seed, ids)
            relative = relative_scores(v, pixels, attributions, targets, 2, args.seed, ids)
            scores = results["methods"][name]
            assert scores["srg"][position] == pytest.approx(rank.srg.item(), abs=1e-4)
            assert scores["r_srg"][position] == pytest.approx(relative.r_srg.item(), abs=1e-4)


def test_batch_size_changes_nothing(arguments, tmp_path):
    runs = [
        run_benchmark(arguments(per_device_eval_batch_size=size, output_dir=str(tmp_path / f"out{size}")))
        for size in (2, 32)
    ]
    for name, scores in runs[0]["methods"].items():
        for score in benchmark.SCORES:
            assert scores[score] == pytest.approx(runs[1]["methods"][name][score], abs=1e-4)


def test_a_stopped_run_keeps_what_is_done(arguments, monkeypatch):
    done = []
    score_method = benchmark.score_method

    def stopped_at_the_third(*args):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(args[-1])
        return score_method(*args)

    monkeypatch.setattr(benchmark, "score_method", stopped_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        run_benchmark(arguments())
    monkeypatch.setattr(benchmark, "score_method", lambda *args: done.append(args[-1]) or score_method(*args))
    results = run_benchmark(arguments())
    assert done == ["salvage", "last_attention", "attention_rollout", "random"]
    assert list(results["methods"]) == done


def test_a_retrained_explainer_is_scored_anew_and_the_baselines_stay(arguments, monkeypatch, tmp_path):
    before = run_benchmark(arguments(methods=["salvage", "random"]))
    explainer = SalvageModel.from_pretrained(tmp_path / "explainer")
    torch.nn.init.normal_(explainer.head.class_projection.weight)
    explainer.save_pretrained(tmp_path / "explainer")
    done = []
    score_method = benchmark.score_method
    monkeypatch.setattr(benchmark, "score_method", lambda *args: done.append(args[-1]) or score_method(*args))
    after = run_benchmark(arguments(methods=["salvage", "random"]))
    assert done == ["salvage"]
    assert before["methods"]["salvage"]["srg"] != after["methods"]["salvage"]["srg"]
    assert before["methods"]["random"] == after["methods"]["random"]
    assert before["classification"]["weights"] != after["classification"]["weights"]


def test_methods_come_one_by_one_into_the_same_results(arguments):
    together = run_benchmark(arguments(methods=["salvage"], per_device_eval_batch_size=3))
    together = run_benchmark(arguments(methods=["random"], explainer=""))
    assert list(together["methods"]) == ["salvage", "random"]
    assert together["classification"]["images"] == 9


@pytest.mark.parametrize("change", ["n_masks", "budget", "images", "classifier"])
def test_what_cannot_stand_in_one_table_is_refused_and_nothing_is_lost(arguments, tmp_path, change):
    run_benchmark(arguments(methods=["random"]))
    before = (tmp_path / "out" / "results.json").read_text()
    changes, told = {"methods": ["random"]}, "settings"
    if change == "n_masks":
        changes["n_masks"] = 3
    elif change == "budget":
        changes["budget"] = 20
    elif change == "images":
        changes["max_eval_samples"], told = 2, "ids and targets"
    else:
        weights = load_file(tmp_path / "classifier" / "model.safetensors")
        weights["classifier.bias"] += 1
        save_file(weights, tmp_path / "classifier" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"holds results with other {told}: .* give another output_dir"):
        run_benchmark(arguments(**changes))
    assert (tmp_path / "out" / "results.json").read_text() == before


def test_fingerprint_sees_every_weight(tiny_classifier):
    model = tiny_classifier()
    before = fingerprint(model)
    assert before == fingerprint(tiny_classifier())
    with torch.no_grad():
        model.classifier.bias[0] += 1e-3
    assert fingerprint(model) != before


def test_the_table_holds_mean_and_standard_error():
    scores = {name: [0.1, 0.3] for name in benchmark.SCORES}
    table = markdown_table({"methods": {"random": scores}})
    assert "| Random | 20.0 ± 10.0 |" in table
    assert "| SRG ↑ | LIF ↑ | MIF ↓ |" in table


def test_classification_counts_agreement(arguments):
    results = run_benchmark(arguments(methods=["salvage"], max_eval_samples=1))
    classification = results["classification"]
    assert classification["images"] == 9  # all images, however few are scored
    assert classification["agreement"] <= 1 - abs(classification["classifier"] - classification["explainer"]) + 1e-9


def test_messages(arguments):
    with pytest.raises(ValueError, match="no attribution method 'guesswork'; there are salvage"):
        arguments(methods=["guesswork"])
    with pytest.raises(ValueError, match="the method salvage needs explainer="):
        arguments(explainer="")


def test_the_file_is_json(arguments, tmp_path):
    run_benchmark(arguments(methods=["random"]))
    assert json.loads((tmp_path / "out" / "results.json").read_text())["settings"]["relative"]["n_masks"] == 2
    assert "Random" in (tmp_path / "out" / "table.md").read_text()
