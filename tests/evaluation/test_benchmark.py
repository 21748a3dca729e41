"""The comparison of methods: it can be resumed, does not depend on the batch size, and is right."""

import dataclasses
import json
import logging
import shutil
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
import transformers
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load, load_file, save_file
from transformers import AutoImageProcessor

from salvage_hf import MaskedClassifier, attribution_methods
from salvage_hf.data.loading import open_image
from salvage_hf.evaluation import benchmark, scoring
from salvage_hf.evaluation.benchmark import run_benchmark
from salvage_hf.evaluation.tables import results_table
from salvage_hf.faithfulness import rank_scores, relative_scores
from salvage_hf.files import fingerprint
from salvage_hf.masking import provenance
from salvage_hf.modeling import SalvageModel


@pytest.fixture
def arguments(benchmark_arguments):
    return benchmark_arguments


def test_scores_are_those_of_single_images(arguments, tmp_path):
    args = arguments()
    results = run_benchmark(args)
    assert len(results["ids"]) == 7
    v = MaskedClassifier.from_pretrained(args.model_name_or_path)
    processor = AutoImageProcessor.from_pretrained(args.model_name_or_path)
    all_names = sorted(str(p.relative_to(tmp_path / "images")) for p in (tmp_path / "images").rglob("*.png"))
    for name in ("last_attention", "salvage"):
        options = {"explainer": tmp_path / "explainer"} if name == "salvage" else {}
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
        for score in ("srg", "lif", "mif", "r_srg", "r_lif", "r_mif"):
            assert scores[score] == pytest.approx(runs[1]["methods"][name][score], abs=1e-4)


@pytest.fixture
def scored(monkeypatch):
    """Counts the batches scored, and stops at the one numbered `scored.stop_at`."""

    class Scored(list):
        stop_at = None

    calls, score_batch = Scored(), scoring.score_batch

    def counting(v, attributions, batch, *rest):
        if len(calls) == calls.stop_at:
            raise KeyboardInterrupt
        calls.append(len(batch["ids"]))
        return score_batch(v, attributions, batch, *rest)

    monkeypatch.setattr(scoring, "score_batch", counting)
    return calls


def without_timings(results):
    methods = {
        name: {key: value for key, value in entry.items() if key != "seconds"}
        for name, entry in results["methods"].items()
    }
    return {**results, "methods": methods}


@pytest.mark.parametrize("stop_at", [1, 3, 5])
def test_a_stopped_run_goes_on_after_its_last_batch(arguments, scored, tmp_path, stop_at):
    options = {"methods": ["salvage", "random"], "per_device_eval_batch_size": 3, "max_relative_samples": 4}
    whole = run_benchmark(arguments(**options, output_dir=str(tmp_path / "whole")))
    assert scored == [3, 3, 1] * 2
    scored.clear()
    scored.stop_at = stop_at
    with pytest.raises(KeyboardInterrupt):
        run_benchmark(arguments(**options))
    scored.stop_at = None
    resumed = run_benchmark(arguments(**options))
    assert scored == [3, 3, 1] * 2  # no batch is scored twice
    assert without_timings(resumed) == without_timings(whole)
    maps = [
        load_file(tmp_path / folder / "maps" / "salvage.safetensors")["attributions"] for folder in ("whole", "out")
    ]
    assert torch.equal(*maps)


def test_maps_with_nan_are_reported_with_method_and_image(arguments, monkeypatch, tmp_path):
    """Earlier scores stay, and the run can continue without the method."""

    def broken(classifier, seed=0):
        def attribute(pixel_values, targets):
            return torch.where(targets[:, None] == 1, torch.nan, torch.ones(len(targets), 16))

        return attribute

    info = attribution_methods.REGISTRY["saliency"]
    monkeypatch.setitem(attribution_methods.REGISTRY, "saliency", dataclasses.replace(info, build=broken))
    with pytest.raises(ValueError, match=r"saliency gives NaN or infinite attributions of \['LABEL_1/\d.png', "):
        run_benchmark(arguments(methods=["random", "saliency", "salvage"]))
    kept = json.loads((tmp_path / "out" / "results.json").read_text())["methods"]
    assert list(kept) == ["random"]
    results = run_benchmark(arguments(methods=["random", "salvage"]))
    assert list(results["methods"]) == ["random", "salvage"]
    assert results["methods"]["random"] == kept["random"]  # even its seconds are the same, so it was not scored again


@pytest.fixture
def mask_dir(arguments, tmp_path):
    """Masks of the upper half of every image; the third image of a class shows no region."""
    for file in (tmp_path / "images").rglob("*.png"):
        mask = np.zeros((20, 20), dtype=np.uint8)
        mask[:10] = 255 * (file.stem != "2")
        target = tmp_path / "masks" / file.parent.name / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(target)
    return str(tmp_path / "masks")


def test_two_processes_give_the_results_of_one(arguments, mask_dir, run_two, tmp_path):
    """7 images in batches of 2 and 2 processes: the last batches are filled up, and what fills them is dropped."""
    methods = ["salvage", "rise", "random"]
    options = {"methods": methods, "sampling_budget": 20, "per_device_eval_batch_size": 2, "mask_dir": mask_dir}
    one = run_benchmark(arguments(**options, max_relative_samples=5))
    args = arguments(**options, max_relative_samples=5, output_dir=str(tmp_path / "two"))
    words = [
        word
        for name, value in vars(args).items()
        if value is not None
        for word in (f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)]))
    ]
    run_two("benchmark", *words)
    two = json.loads((tmp_path / "two" / "results.json").read_text())
    for name, entry in one["methods"].items():
        for scores in (entry, entry["curves"]):
            others = two["methods"][name] if scores is entry else two["methods"][name]["curves"]
            for key in scores.keys() - {"seconds", "curves"}:
                assert others[key] == pytest.approx(scores[key], abs=1e-5), (name, key)
    del one["methods"], two["methods"]
    assert one == two


def test_relative_scores_of_the_first_images_only(arguments):
    results = run_benchmark(arguments(methods=["random"], max_relative_samples=4, per_device_eval_batch_size=3))
    everything = run_benchmark(arguments(methods=["random"], output_dir=arguments().output_dir + "_all"))
    few, all_of_them = results["methods"]["random"], everything["methods"]["random"]
    assert few["srg"] == all_of_them["srg"]
    assert few["r_srg"] == [*all_of_them["r_srg"][:4], None, None, None]
    assert results["settings"]["relative"] == {"n_masks": 2, "images": 4}


def test_a_retrained_explainer_is_scored_again_and_the_baselines_stay(arguments, scored, tmp_path):
    before = run_benchmark(arguments(methods=["salvage", "random"]))
    explainer = SalvageModel.from_pretrained(tmp_path / "explainer")
    torch.nn.init.normal_(explainer.head.class_projection.weight)
    explainer.save_pretrained(tmp_path / "explainer")
    scored.clear()
    after = run_benchmark(arguments(methods=["salvage", "random"]))
    assert scored == [7]
    assert before["methods"]["salvage"]["srg"] != after["methods"]["salvage"]["srg"]
    assert before["methods"]["random"] == after["methods"]["random"]
    weights = [results["classification"]["salvage"]["weights"] for results in (before, after)]
    assert weights[0] != weights[1]


def test_a_stopped_run_leaves_no_scores_of_other_weights(arguments, scored, tmp_path):
    """Scores of the earlier explainer must not stand beside predictions of the new one."""
    run_benchmark(arguments(methods=["salvage", "random"]))
    explainer = SalvageModel.from_pretrained(tmp_path / "explainer")
    torch.nn.init.normal_(explainer.head.class_projection.weight)
    explainer.save_pretrained(tmp_path / "explainer")
    scored.stop_at = len(scored)
    with pytest.raises(KeyboardInterrupt):
        run_benchmark(arguments(methods=["salvage", "random"]))
    assert list(json.loads((tmp_path / "out" / "results.json").read_text())["methods"]) == ["random"]


def test_one_label(arguments, tiny_classifier, tmp_path):
    """Images with and without the label have targets 1 and 0; the map of 0 is that of 1 with the opposite sign."""
    classifier = tiny_classifier("dinov2_with_registers", num_labels=1)
    classifier.config.id2label, classifier.config.label2id = {0: "LABEL_1"}, {"LABEL_1": 0}
    classifier.save_pretrained(tmp_path / "classifier")
    explainer = SalvageModel.from_classifier(classifier)
    torch.nn.init.normal_(explainer.head.class_projection.weight)
    explainer.save_pretrained(tmp_path / "explainer")
    shutil.rmtree(tmp_path / "images" / "LABEL_2")
    results = run_benchmark(arguments(methods=["salvage"], max_eval_samples=6))
    assert results["targets"] == [int("LABEL_1" in name) for name in results["ids"]]
    assert results["label_names"] == ["LABEL_1"]
    processor = AutoImageProcessor.from_pretrained(tmp_path / "classifier")
    maps = load_file(tmp_path / "out" / "maps" / "salvage.safetensors")["attributions"]
    wrong, kept = results["misclassified"], load_file(tmp_path / "out" / "misclassified.safetensors")
    assert wrong["ids"]
    for names, targets, drawn in (
        (results["ids"], results["targets"], maps),
        (wrong["ids"], wrong["predicted"], kept["predicted"]),
        (wrong["ids"], wrong["true"], kept["true"]),
    ):
        for name, target, values in zip(names, targets, drawn, strict=True):
            pixels = processor(open_image(tmp_path / "images" / name), return_tensors="pt")["pixel_values"]
            expected = explainer(pixels).attributions[0, :, 0].detach() * (1 if target == 1 else -1)
            torch.testing.assert_close(values, expected, atol=1e-4, rtol=1e-4)


def test_methods_come_one_by_one_into_the_same_results(arguments, monkeypatch):
    before = transformers.__version__
    run_benchmark(arguments(methods=["salvage"], per_device_eval_batch_size=3))
    monkeypatch.setattr(transformers, "__version__", "9.0")
    together = run_benchmark(arguments(methods=["salvage", "random"]))
    versions = {name: entry["measured_on"]["transformers"] for name, entry in together["methods"].items()}
    assert versions == {"salvage": before, "random": "9.0"}  # a finished method keeps what it was measured on
    assert len(together["classification"]["salvage"]["predictions"]) == 9


@pytest.mark.parametrize(
    "change", ["n_masks", "budget", "images", "classifier", "layer_norm_eps", "resample", "version", "pixels"]
)
def test_what_cannot_stand_in_one_table_is_refused_and_nothing_is_lost(arguments, monkeypatch, tmp_path, change):
    results = run_benchmark(arguments(methods=["random"]))
    before = (tmp_path / "out" / "results.json").read_text()
    changes, told = {"methods": ["random"]}, "settings"
    if change == "n_masks":
        changes["n_masks"] = 3
    elif change == "budget":
        changes["budget"] = 20
    elif change == "images":
        changes["max_eval_samples"], told = 2, "settings and ids and targets"
    elif change == "pixels":
        Image.new("RGB", (20, 20)).save(tmp_path / "images" / results["ids"][0])
    elif change == "version":
        monkeypatch.setattr(benchmark, "VERSION", "0.0.1")
    elif change in ("layer_norm_eps", "resample"):
        path = tmp_path / "classifier" / ("config.json" if change == "layer_norm_eps" else "preprocessor_config.json")
        path.write_text(json.dumps({**json.loads(path.read_text()), change: 0.5 if path.name == "config.json" else 2}))
    else:
        weights = load_file(tmp_path / "classifier" / "model.safetensors")
        weights["classifier.bias"] += 1
        save_file(weights, tmp_path / "classifier" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"holds results with other {told}: .* give another output_dir"):
        run_benchmark(arguments(**changes))
    assert (tmp_path / "out" / "results.json").read_text() == before


def test_other_options_of_a_finished_method_are_refused(arguments, tmp_path):
    run_benchmark(arguments(methods=["rise"], sampling_budget=20))
    before = (tmp_path / "out" / "results.json").read_text()
    with pytest.raises(ValueError, match=r"holds rise with {'budget': 20}, here {'budget': 30}; give another"):
        run_benchmark(arguments(methods=["random", "rise"], sampling_budget=30))
    assert (tmp_path / "out" / "results.json").read_text() == before


@pytest.mark.parametrize("method", ["salvage", "vit_shapley"])
def test_an_explainer_of_other_labels_is_refused_before_anything_is_measured(
    arguments, salvage_model, tmp_path, method
):
    explainer = salvage_model(paired_values=method == "salvage", objective=method)
    explainer.config.id2label = {index: f"LABEL_{(index + 1) % 3}" for index in range(3)}
    explainer.save_pretrained(tmp_path / "other")
    explainers = [f"{method}={tmp_path / 'other'}"]
    with pytest.raises(
        ValueError, match=r"explainer has the labels \['LABEL_1', 'LABEL_2', 'LABEL_0'\], the classifier"
    ):
        run_benchmark(arguments(methods=["random", method], explainers=explainers))
    assert not (tmp_path / "out" / "results.json").exists()


def test_an_explainer_of_another_objective_is_refused_before_anything_is_measured(arguments, tmp_path):
    explainers = [f"fastshap={tmp_path / 'explainer'}"]
    with pytest.raises(
        ValueError, match="explainer was trained by the objective 'salvage', the method needs one by 'fastshap'"
    ):
        run_benchmark(arguments(methods=["random", "fastshap"], explainers=explainers))
    assert not (tmp_path / "out" / "results.json").exists()


def test_predictions_follow_the_images_that_no_score_sees(arguments, monkeypatch, tmp_path):
    """Table 4 covers all images, so the stored predictions are outdated when one image changes."""
    asked, predictions = [], benchmark.predictions
    monkeypatch.setattr(benchmark, "predictions", lambda *args: asked.append(args[-1]) or predictions(*args))
    before = run_benchmark(arguments(methods=["random"], max_eval_samples=2))
    unseen = sorted(
        {f"{path.parent.name}/{path.name}" for path in (tmp_path / "images").glob("*/*")} - {*before["ids"]}
    )
    Image.new("RGB", (20, 20)).save(tmp_path / "images" / unseen[0])
    after = run_benchmark(arguments(methods=["random"], max_eval_samples=2))
    assert after["methods"] == before["methods"]
    assert asked == ["classifier", "classifier"]
    run_benchmark(arguments(methods=["random"], max_eval_samples=2))
    assert len(asked) == 2
    fresh = run_benchmark(arguments(methods=["random"], max_eval_samples=2, output_dir=str(tmp_path / "fresh")))
    assert after["classification"] == fresh["classification"]


def test_fingerprint_sees_every_weight(tiny_classifier):
    model = tiny_classifier()
    before = fingerprint(model)
    assert before == fingerprint(tiny_classifier())
    with torch.no_grad():
        model.classifier.bias[0] += 1e-3
    assert fingerprint(model) != before


def test_predictions_are_of_all_images(arguments, tmp_path):
    results = run_benchmark(arguments(methods=["salvage"], max_eval_samples=1))
    v = MaskedClassifier.from_pretrained(str(tmp_path / "classifier"))
    explainer = SalvageModel.from_pretrained(tmp_path / "explainer")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "classifier")
    files = sorted((tmp_path / "images").rglob("*.png"))
    pixels = processor([open_image(file) for file in files], return_tensors="pt")["pixel_values"]
    classification = results["classification"]
    assert classification["labels"] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert classification["classifier"]["predictions"] == v.classifier(pixels).logits.argmax(-1).tolist()
    assert classification["salvage"]["predictions"] == explainer(pixels).logits.argmax(-1).tolist()


def test_what_is_kept_for_the_report(arguments, tmp_path):
    """Pictures show what the model sees; misclassified images have maps of the predicted and of the true class."""
    results = run_benchmark(arguments(methods=["salvage"]))
    processor = AutoImageProcessor.from_pretrained(tmp_path / "classifier")
    explainer = SalvageModel.from_pretrained(tmp_path / "explainer")
    assert sorted(results["examples"]) == list(range(7))
    targets = [results["targets"][position] for position in results["examples"]]
    assert targets[:3] == [0, 1, 2]  # one image of every class comes before the second of any
    pictures = load_file(tmp_path / "out" / "examples.safetensors")["pictures"]
    name = results["ids"][results["examples"][0]]
    pixels = processor(open_image(tmp_path / "images" / name), return_tensors="pt")["pixel_values"]
    seen = processor(Image.fromarray(pictures[0].numpy()), return_tensors="pt", do_resize=False)["pixel_values"]
    assert torch.allclose(seen, pixels, atol=0.02)
    wrong = results["misclassified"]
    assert wrong["ids"]
    assert all(predicted != true for predicted, true in zip(wrong["predicted"], wrong["true"], strict=True))
    kept = load_file(tmp_path / "out" / "misclassified.safetensors")
    pixels = processor(open_image(tmp_path / "images" / wrong["ids"][0]), return_tensors="pt")["pixel_values"]
    attributions = explainer(pixels).attributions[0].detach()
    for kind in ("predicted", "true"):
        torch.testing.assert_close(kept[kind][0], attributions[:, wrong[kind][0]])


def test_cost_is_counted_in_forwards(arguments, tmp_path):
    """RISE: v(S) of 30 masks with half the patches; attention: a forward; saliency: forward and backward; random: 0."""
    results = run_benchmark(arguments(methods=["rise", "last_attention", "saliency", "random"], sampling_budget=30))
    forwards = {name: entry["forwards"] for name, entry in results["methods"].items()}
    assert forwards["random"] == 0
    assert forwards["last_attention"] == pytest.approx(1)  # its eager attention counts as much as the CPU's own
    assert forwards["saliency"] == pytest.approx(2, rel=0.2)
    prefix, patches = 4, 16  # CLS and three registers
    assert forwards["rise"] == pytest.approx(30 * (prefix + patches / 2) / (prefix + patches), rel=0.2)


def test_mixed_precision_applies_to_masked_forwards_alone(arguments, monkeypatch, tmp_path):
    """What a method reads from the classifier itself stays in float32; v(S) is rounded, also in the scores."""
    precise = run_benchmark(arguments(methods=["saliency", "rise"], sampling_budget=20))
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    AcceleratorState._reset_state(reset_partial_state=True)
    mixed = run_benchmark(
        arguments(methods=["saliency", "rise"], sampling_budget=20, output_dir=str(tmp_path / "mixed"))
    )
    AcceleratorState._reset_state(reset_partial_state=True)
    assert [results["settings"]["precision"] for results in (precise, mixed)] == ["no", "bf16"]
    maps = {
        (folder, name): load_file(tmp_path / folder / "maps" / f"{name}.safetensors")["attributions"]
        for folder in ("out", "mixed")
        for name in ("saliency", "rise")
    }
    assert torch.equal(maps["out", "saliency"], maps["mixed", "saliency"])
    assert 0 < (maps["out", "rise"] - maps["mixed", "rise"]).abs().max() < 0.02
    scores = [np.array(results["methods"]["saliency"]["srg"]) for results in (precise, mixed)]
    assert 0 < np.abs(scores[0] - scores[1]).max() < 0.02


def test_regions(arguments, mask_dir, tmp_path):
    """The benchmark crops masks as the model sees the images, and brings maps to these pixels."""
    results = run_benchmark(arguments(methods=["random"], mask_dir=mask_dir, per_device_eval_batch_size=3))
    maps = load_file(tmp_path / "out" / "maps" / "random.safetensors")["attributions"]
    for score in ("rra", "rma"):
        for name, value, row in zip(results["ids"], results["methods"]["random"][score], maps, strict=True):
            if name.endswith("2.png"):
                assert value is None
                continue
            pixels = torch.nn.functional.interpolate(row.view(1, 1, 4, 4), size=(16, 16), mode="bilinear")[0, 0]
            upper = torch.zeros(16, 16, dtype=torch.bool)
            upper[:8] = True
            if score == "rma":
                expected = pixels.clamp_min(0)[upper].sum() / pixels.clamp_min(0).sum()
            else:
                expected = upper.flatten()[pixels.flatten().argsort(descending=True)[:128]].float().mean()
            assert value == pytest.approx(expected.item(), abs=1e-4)
    columns = {"image": results["ids"], "mask": results["ids"], "label": results["targets"]}
    for name, folder in (("image", "images"), ("mask", "masks")):
        columns[name] = [{"bytes": (tmp_path / folder / file).read_bytes(), "path": None} for file in results["ids"]]
    features = {"image": datasets.Image(), "mask": datasets.Image(), "label": datasets.Value("int64")}
    (tmp_path / "own").mkdir()
    datasets.Dataset.from_dict(columns, datasets.Features(features)).to_parquet(tmp_path / "own" / "test.parquet")
    of_column = run_benchmark(
        arguments(
            methods=["random"],
            dataset_name=str(tmp_path / "own"),
            validation_dir=None,
            mask_column_name="mask",
            output_dir=str(tmp_path / "of column"),
        )
    )
    places = [int(name) for name in of_column["ids"]]  # parquet images have no names
    for score in ("rra", "rma"):
        assert of_column["methods"]["random"][score] == [results["methods"]["random"][score][at] for at in places]
    one = tmp_path / "masks" / results["ids"][0]
    Image.fromarray(np.arange(400, dtype=np.uint8).reshape(20, 20)).save(one)
    with pytest.raises(ValueError, match=r"mask '.*' cannot be used: .* a region is white, the rest black"):
        run_benchmark(arguments(methods=["random"], mask_dir=mask_dir, output_dir=str(tmp_path / "ones")))
    with pytest.raises(ValueError, match=r"mask_dir=.*none' holds no mask of 9 images"):
        run_benchmark(
            arguments(methods=["random"], mask_dir=str(tmp_path / "none"), output_dir=str(tmp_path / "other"))
        )


@pytest.mark.parametrize(("rank", "relative"), [(0, 0), (2, 0), (0, 5), (5, 2)])
def test_only_what_is_asked_for_is_measured(arguments, mask_dir, tmp_path, rank, relative):
    """Rank and relative scores of the first images only, whatever the batches are; of no image, they are left out."""
    options = {"methods": ["random"], "mask_dir": mask_dir, "per_device_eval_batch_size": 3}
    whole = run_benchmark(arguments(**options, output_dir=str(tmp_path / "whole")))["methods"]["random"]
    results = run_benchmark(arguments(**options, max_rank_samples=rank, max_relative_samples=relative))
    json.loads((tmp_path / "out" / "results.json").read_text(), parse_constant=pytest.fail)
    part = results["methods"]["random"]
    assert part["rra"] == whole["rra"]
    assert part["rma"] == whole["rma"]
    for number, prefix in ((rank, ""), (relative, "r_")):
        names = [f"{prefix}{score}" for score in ("srg", "lif", "mif")]
        assert [name in part for name in names] == [number > 0] * 3
        assert [f"{prefix}{score}" in part["curves"] for score in ("lif", "mif")] == [number > 0] * 2
        for name in names if number else []:
            assert part[name][:number] == pytest.approx(whole[name][:number], abs=1e-5)
            assert part[name][number:] == [None] * (len(whole[name]) - number)


def test_error_messages(arguments):
    with pytest.raises(ValueError, match="no attribution method 'guesswork'; there are salvage"):
        arguments(methods=["guesswork"])
    with pytest.raises(ValueError, match="max_relative_samples must be at least 0, got -1"):
        arguments(max_relative_samples=-1)
    with pytest.raises(ValueError, match="budget must be at least 5, got 4"):
        arguments(budget=4)
    with pytest.raises(ValueError, match="model_name_or_path is needed: the classifier to explain"):
        arguments(model_name_or_path="")
    with pytest.raises(ValueError, match="max_eval_samples must be at least 1, got 0"):
        arguments(max_eval_samples=0)
    with pytest.raises(ValueError, match="nothing is scored: max_rank_samples and max_relative_samples are 0"):
        arguments(max_rank_samples=0, max_relative_samples=0)
    with pytest.raises(ValueError, match="the method salvage needs an explainer: give explainers salvage=FOLDER"):
        arguments(explainers=[])
    with pytest.raises(ValueError, match="explainers: 'outputs' is not OBJECTIVE=FOLDER, for example salvage=outputs"):
        arguments(explainers=["outputs"])
    with pytest.raises(ValueError, match="explainers: 'salvage=' is not OBJECTIVE=FOLDER"):
        arguments(explainers=["salvage="])
    with pytest.raises(ValueError, match="explainers: no objective 'rise' in 'rise=a'; there are salvage, vit_shapley"):
        arguments(explainers=["rise=a"])
    with pytest.raises(ValueError, match="explainers: salvage is given twice, 'a' and 'b'"):
        arguments(explainers=["salvage=a", "salvage=b"])
    with pytest.raises(ValueError, match="masking='fog' is not one of drop, mask_token, zero, mean, blur"):
        arguments(masking="fog")
    with pytest.raises(ValueError, match="explainers: salvage is not among the methods random; add it there"):
        arguments(methods=["random"], explainers=["salvage=a"])
    for methods in ([], ["random", "rise", "random"]):
        with pytest.raises(ValueError, match=r"methods must name one method or more, each once, got \["):
            arguments(methods=methods)
    with pytest.raises(ValueError, match="give either dataset_name or validation_dir, got None and None"):
        arguments(validation_dir=None)
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        arguments(seed=-1)
    with pytest.raises(ValueError, match="seed must be at most 4294967295, got 4294967296"):
        arguments(seed=2**32)


def test_the_file_is_json_and_becomes_a_table(arguments, tmp_path):
    run_benchmark(arguments(methods=["random"]))
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["settings"]["relative"]["n_masks"] == 2
    assert results_table(results, ("srg",)).splitlines()[2].startswith("| Random | ")


def test_a_damaged_file_of_maps_is_named_and_its_images_are_scored_again(arguments, caplog, tmp_path):
    before = run_benchmark(arguments(methods=["random"]))
    path = tmp_path / "out" / "maps" / "random.safetensors"
    content = path.read_bytes()
    for damage in (b"", content[:-9], b"\xff" * 200):
        path.write_bytes(damage)
        caplog.clear()
        after = run_benchmark(arguments(methods=["random"]))
        assert "maps/random.safetensors' is damaged, so its images are scored again" in caplog.text
        assert without_timings(after) == without_timings(before)
        assert torch.equal(load_file(path)["attributions"], load(content)["attributions"])


@pytest.mark.parametrize("column", ["srg", "forwards"])
def test_maps_without_a_column_or_with_nan_are_damaged_too(arguments, caplog, tmp_path, column):
    run_benchmark(arguments(methods=["random"]))
    path = tmp_path / "out" / "maps" / "random.safetensors"
    with safe_open(path, framework="pt") as stored:
        metadata = stored.metadata()
    rows = load(path.read_bytes())
    if column == "srg":
        del rows["srg"]
    else:
        rows["attributions"][2, 0] = torch.nan
    save_file(rows, path, metadata=metadata)
    run_benchmark(arguments(methods=["random"]))
    assert "maps/random.safetensors' is damaged, so its images are scored again" in caplog.text


def test_damaged_results_are_refused_by_name_and_stay(arguments, tmp_path):
    run_benchmark(arguments(methods=["random"]))
    path = tmp_path / "out" / "results.json"
    text = path.read_text()
    for wrong in (text[:-9], "[]", text.replace('"classification"', '"classify"')):
        path.write_text(wrong)
        with pytest.raises(ValueError, match=r"out/results\.json' is not what salvage benchmark writes: "):
            run_benchmark(arguments(methods=["random"]))
        assert path.read_text() == wrong


def test_answers_that_are_nan_name_the_image(arguments, monkeypatch):
    def nan_of_the_black_image(pixel_values, *rest):
        logits = torch.rand(len(pixel_values), 3)
        logits[pixel_values.flatten(1).mean(dim=1) < -1, 1] = torch.nan
        return SimpleNamespace(logits=logits)

    nan_of_the_black_image.config = SimpleNamespace()
    pixels = torch.rand(3, 3, 4, 4) - 2 * torch.tensor([0, 1, 0])[:, None, None, None]
    images = [{"pixel_values": image, "ids": index} for index, image in enumerate(pixels)]
    with pytest.raises(ValueError, match=r"classifier answers NaN or infinity to \['b'\]: leave them out, or give"):
        benchmark.predictions(Accelerator(), nan_of_the_black_image, images, ["a", "b", "c"], 2, "classifier")

    def refusing(v, pixel_values, attributions, targets, seed, ids):
        if 4 in ids:
            raise ValueError(f"v returned NaN for the images at {(ids == 4).nonzero().flatten().tolist()}")
        return rank_scores(v, pixel_values, attributions, targets, seed, ids)

    monkeypatch.setattr(scoring, "rank_scores", refusing)
    with pytest.raises(ValueError, match=r"random cannot be scored on 'LABEL_1/1\.png': v returned NaN for the images"):
        run_benchmark(arguments(methods=["random"], max_eval_samples=9))


def test_predictions_follow_an_image_that_moves_to_another_class(arguments, tmp_path):
    """Its content and its place among the images stay the same, but what is right does not."""
    before = run_benchmark(arguments(methods=["random"], max_eval_samples=1))
    label = next(label for label in (0, 1) if f"LABEL_{label}/2.png" not in before["ids"])
    folder = tmp_path / "images"
    (folder / f"LABEL_{label}" / "2.png").rename(folder / f"LABEL_{label + 1}" / "-.png")
    after = run_benchmark(arguments(methods=["random"], max_eval_samples=1))
    assert after["ids"] == before["ids"]
    assert after["classification"]["labels"] != before["classification"]["labels"]
    fresh = run_benchmark(arguments(methods=["random"], max_eval_samples=1, output_dir=str(tmp_path / "fresh")))
    assert after["classification"] == fresh["classification"]


def test_renamed_labels_are_shown_under_their_new_names(arguments, tmp_path):
    run_benchmark(arguments(methods=["random"]))
    config = json.loads((tmp_path / "classifier" / "config.json").read_text())
    names = {"0": "tabby", "1": "beagle", "2": "canary"}
    config |= {"id2label": names, "label2id": {name: int(index) for index, name in names.items()}}
    (tmp_path / "classifier" / "config.json").write_text(json.dumps(config))
    for index, name in names.items():
        (tmp_path / "images" / f"LABEL_{index}").rename(tmp_path / "images" / name)
    results = run_benchmark(arguments(methods=["random"], output_dir=str(tmp_path / "other")))
    assert results["label_names"] == ["tabby", "beagle", "canary"]


def test_an_explainer_of_another_classifier_is_refused_unless_allowed(arguments, tiny_classifier, caplog, tmp_path):
    v = MaskedClassifier.from_pretrained(str(tmp_path / "classifier"))
    explainer = SalvageModel.from_pretrained(tmp_path / "explainer")
    for fingerprint_of_theirs, message in ((provenance(v)["fingerprint"], None), ("another", "weights or config")):
        explainer.config.explained_classifier = {**provenance(v), "fingerprint": fingerprint_of_theirs}
        explainer.save_pretrained(tmp_path / "explainer")
        if message:
            with pytest.raises(ValueError, match=rf"explainer was trained for the classifier .* {message}"):
                run_benchmark(arguments(methods=["salvage"]))
            assert list(run_benchmark(arguments(methods=["salvage"], allow_other_classifier=True))["methods"])
            assert message in caplog.text
        else:
            run_benchmark(arguments(methods=["salvage"]))


def test_the_log_shows_how_labels_were_matched(arguments, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("salvage_hf"), "level", logging.WARNING)
    logging.getLogger("salvage_hf").manager._clear_cache()
    run_benchmark(arguments(methods=["random"]))
    assert "Labels of the data set and of the classifier: LABEL_0 -> LABEL_0, LABEL_1" in caplog.text


def test_an_explainer_is_checked_once_before_anything_is_measured(arguments, tmp_path, caplog):
    """The tiny explainer states no classifier: one warning. A classifier in its place is refused by a sentence."""
    with caplog.at_level("WARNING", "salvage_hf"):
        run_benchmark(arguments(methods=["salvage"]))
    assert caplog.text.count("does not state which classifier it was trained for") == 1
    wrong = arguments(methods=["salvage"], output_dir=str(tmp_path / "other"))
    wrong.explainers = [f"salvage={wrong.model_name_or_path}"]
    with pytest.raises(ValueError, match="explainer must be a SalvageModel"):
        run_benchmark(wrong)
    assert not (tmp_path / "other" / "results.json").exists()
