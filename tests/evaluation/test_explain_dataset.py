"""scripts/explain_dataset.py: the rows, whatever the processes, batches, shards and kills; streams; damaged shards."""

import dataclasses
import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from datasets import load_dataset
from faults import states_of_kills
from huggingface_hub import DatasetCard
from local_hub import run_on
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

from salvage_hf import MaskedClassifier, attribution_methods
from salvage_hf.evaluation.explain_dataset import ExplainDatasetArguments, dataset_table, run_explain_dataset
from salvage_hf.evaluation.explained_rows import unique_names
from salvage_hf.modeling import SalvageModel
from salvage_hf.recipes import RECIPE, read_recipe


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


@pytest.fixture
def arguments(benchmark_arguments, tmp_path):
    """A factory: arguments for the 9 pictures of a tiny classifier and its explainer."""
    benchmark = benchmark_arguments()

    def build(**changes):
        defaults = {
            "model_name_or_path": benchmark.model_name_or_path,
            "explainer": None if changes.get("method") else str(tmp_path / "explainer"),
            "validation_dir": None if changes.get("dataset_name") else benchmark.validation_dir,
            "per_device_eval_batch_size": 2,
            "images_per_shard": 4,
            "output_dir": str(tmp_path / "out"),
        }
        return ExplainDatasetArguments(**{**defaults, **changes})

    return build


def rows_of(folder, **options):
    """The rows of a data set, as a user reads them."""
    return load_dataset(str(folder), **options)["validation"].with_format("numpy")[:]


def shards(folder):
    return {path.name: path.read_bytes() for path in sorted((Path(folder) / "data").iterdir())}


def assert_same(rows, others, exact=True):
    assert rows.keys() == others.keys()
    for name, values in others.items():
        if exact or values.dtype.kind != "f":
            assert np.array_equal(rows[name], values), name
        else:
            np.testing.assert_allclose(rows[name], values, atol=1e-5, err_msg=name)


def literal_rows(args):
    """The rows of an explainer by plain loops over the files, with transformers alone."""
    classifier = AutoModelForImageClassification.from_pretrained(args.model_name_or_path)
    explainer = SalvageModel.from_pretrained(args.explainer).eval()
    processor = AutoImageProcessor.from_pretrained(args.model_name_or_path)
    rows = []
    for index, file in enumerate(sorted(Path(args.validation_dir).rglob("*.png"))):
        pixel_values = processor(Image.open(file).convert("RGB"), return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            theirs, ours = explainer(pixel_values), classifier(pixel_values).logits[0]
        label = int(file.parent.name.removeprefix("LABEL_"))
        prediction, own = int(ours.argmax()), int(theirs.logits[0].argmax())
        target = label if args.target == "label" else prediction
        maps = theirs.positive_values[0] - theirs.negative_values[0]  # [N, K]
        rows.append(
            {
                "index": index,
                "name": f"{file.parent.name}/{file.name}",
                "label": label,
                "target": target,
                "attributions": maps.numpy() if args.classes == "all" else maps[:, target].numpy(),
                "grid_size": [4, 4],
                "classifier_prediction": prediction,
                "classifier_probabilities": ours.softmax(-1).numpy(),
                "explainer_prediction": own,
                "explainer_probabilities": theirs.logits[0].softmax(-1).numpy(),
                "agreement": prediction == own,
            }
        )
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


@pytest.mark.parametrize("target", ["predicted", "label"])
@pytest.mark.parametrize("classes", ["target", "all"])
def test_the_rows_are_the_literal_ones(arguments, tmp_path, target, classes):
    args = arguments(target=target, classes=classes)
    found = run_explain_dataset(args)
    rows, literal = rows_of(tmp_path / "out"), literal_rows(args)
    assert_same(rows, literal, exact=False)
    assert rows["attributions"].shape == ((9, 16) if classes == "target" else (9, 16, 3))
    assert len(set(rows["target"].tolist())) > 1
    right = {
        model: (literal[f"{model}_prediction"] == literal["label"]).mean() for model in ("classifier", "explainer")
    }
    assert found == {
        "images": 9,
        "labelled": 9,
        "classifier_accuracy": pytest.approx(right["classifier"]),
        "explainer_accuracy": pytest.approx(right["explainer"]),
        "agreement": pytest.approx(literal["agreement"].mean()),
        "split": "validation",
        "shards": 3,
    }
    assert found == json.loads((tmp_path / "out" / "explained.json").read_text())["summary"]
    assert "9 images in 3 shards" in dataset_table(found, "out")


@pytest.mark.parametrize("classes", ["target", "all"])
@pytest.mark.parametrize("name", ["rise", "last_attention", "random"])
def test_the_maps_of_other_methods(arguments, tmp_path, name, classes):
    args = arguments(method=name, classes=classes, seed=5, **({"sampling_budget": 30} if name == "rise" else {}))
    found = run_explain_dataset(args)
    assert "agreement" not in found
    v = MaskedClassifier.from_pretrained(args.model_name_or_path)
    options = {"budget": 30} if name == "rise" else {}
    method = attribution_methods.load(name, v, 5, **options)
    rows = rows_of(tmp_path / "out")
    assert "explainer_prediction" not in rows
    for index, file in enumerate(sorted(Path(args.validation_dir).rglob("*.png"))):
        pixel_values = v.processor(Image.open(file).convert("RGB"), return_tensors="pt")["pixel_values"]
        wanted = range(3) if classes == "all" else [rows["target"][index]]
        maps = [method(pixel_values, torch.tensor([k]))[0].numpy() for k in wanted]
        maps = np.stack(maps, -1) if classes == "all" else maps[0]
        np.testing.assert_allclose(rows["attributions"][index], maps, atol=1e-5)


def test_an_explainer_whose_values_pass_through_its_method(arguments, tiny_classifier, tmp_path):
    """ViT-Shapley's maps are moved by two predictions of the classifier: not the explainer's output as it is."""
    args = arguments()
    torch.manual_seed(0)
    classifier = AutoModelForImageClassification.from_pretrained(args.model_name_or_path)
    explainer = SalvageModel.from_classifier(classifier, objective="vit_shapley", paired_values=False)
    explainer.save_pretrained(tmp_path / "explainer")
    run_explain_dataset(arguments(classes="all"))
    v = MaskedClassifier.from_pretrained(args.model_name_or_path)
    method = attribution_methods.load("vit_shapley", v, explainer=str(tmp_path / "explainer"))
    file = min(Path(args.validation_dir).rglob("*.png"))
    pixel_values = v.processor(Image.open(file).convert("RGB"), return_tensors="pt")["pixel_values"]
    maps = np.stack([method(pixel_values, torch.tensor([k]))[0].numpy() for k in range(3)], axis=-1)
    np.testing.assert_allclose(rows_of(tmp_path / "out")["attributions"][0], maps, atol=1e-5)


@pytest.mark.parametrize("classes", ["target", "all"])
def test_one_label(arguments, tiny_classifier, tmp_path, classes):
    """The target is 0 or 1: the map of 0 has the other sign; all classes are the one of label 1."""
    classifier = tiny_classifier("dinov2_with_registers", num_labels=1)
    classifier.save_pretrained(tmp_path / "classifier")
    explainer = SalvageModel.from_classifier(classifier)
    torch.nn.init.normal_(explainer.head.class_projection.weight)
    explainer.save_pretrained(tmp_path / "explainer")
    shutil.rmtree(tmp_path / "images" / "LABEL_2")
    args = arguments(target="label", classes=classes)
    run_explain_dataset(args)
    rows = rows_of(tmp_path / "out")
    assert rows["target"].tolist() == [0, 0, 0, 1, 1, 1]
    assert rows["classifier_probabilities"].shape == (6, 1)
    model = SalvageModel.from_pretrained(args.explainer).eval()
    processor = AutoImageProcessor.from_pretrained(args.model_name_or_path)
    for index, file in enumerate(sorted(Path(args.validation_dir).rglob("*.png"))):
        with torch.no_grad():
            map_of_1 = model(processor(Image.open(file), return_tensors="pt")["pixel_values"]).attributions[0].numpy()
        expected = map_of_1 if classes == "all" else map_of_1[:, 0] * (1 if index >= 3 else -1)
        np.testing.assert_allclose(rows["attributions"][index], expected, atol=1e-5)


def test_batches_and_shards_change_no_row(arguments, tmp_path):
    run_explain_dataset(arguments())
    rows = rows_of(tmp_path / "out")
    for number, changes in enumerate(
        ({"per_device_eval_batch_size": 3}, {"images_per_shard": 1}, {"images_per_shard": 99})
    ):
        folder = tmp_path / f"other_{number}"
        run_explain_dataset(arguments(output_dir=str(folder), **changes))
        assert_same(rows_of(folder), rows, exact=False)


def test_two_processes_write_the_same_files(arguments, run_two, tmp_path):
    args = arguments(images_per_shard=2)
    run_explain_dataset(args)
    words = []
    for name, value in dataclasses.asdict(dataclasses.replace(args, output_dir=str(tmp_path / "two"))).items():
        if value not in (None, False):
            words += [f"--{name}", str(value)]
    run_two("explain-dataset", *words)
    # Not the bytes of the files: two processes may compute with another number of threads.
    assert_same(rows_of(tmp_path / "two"), rows_of(tmp_path / "out"), exact=False)
    assert [name.rpartition("-")[0] for name in shards(tmp_path / "two")] == [f"validation-0000{n}" for n in range(5)]


def test_a_kill_at_any_moment_loses_nothing(arguments, tmp_path):
    folder = tmp_path / "out"
    args = arguments()
    states = states_of_kills(lambda: run_explain_dataset(args), folder, tmp_path / "states")
    whole, rows = shards(folder), rows_of(folder)
    seen = set()
    for state in filter(Path.exists, states):
        files = tuple((str(path.relative_to(state)), path.read_bytes()) for path in sorted(state.rglob("*.p*")))
        if files in seen:
            continue
        seen.add(files)
        finished = (
            {name: content for name, content in shards(state).items() if name in whole}
            if (state / "data").exists()
            else {}
        )
        assert all(whole[name] == content for name, content in finished.items())
        run_explain_dataset(dataclasses.replace(args, output_dir=str(state)))
        assert shards(state) == whole
    assert len(seen) >= 6
    assert_same(rows_of(state), rows)


def test_finished_shards_are_kept_and_damaged_ones_made_again(arguments, tmp_path, caplog):
    args = arguments()
    run_explain_dataset(args)
    whole = shards(tmp_path / "out")
    first, second, third = (tmp_path / "out" / "data" / name for name in whole)
    first.write_bytes(first.read_bytes()[:-1] + b"X")
    second.write_bytes(second.read_bytes()[:100])
    kept = third.stat().st_mtime_ns
    (tmp_path / "out" / "data" / "validation-00001-0123456789abcdef.parquet").write_bytes(whole[second.name])
    run_explain_dataset(args)
    assert shards(tmp_path / "out") == whole
    assert third.stat().st_mtime_ns == kept
    assert caplog.text.count("is damaged, or of another run") == 3


def test_other_settings_are_refused(arguments, tmp_path):
    run_explain_dataset(arguments())
    for changes in ({"target": "label"}, {"images_per_shard": 3}, {"attributions_type": "float16"}):
        (name,) = changes
        with pytest.raises(ValueError, match=rf"explained.json' is of a run with other settings .*'{name}'"):
            run_explain_dataset(arguments(**changes))
    Image.new("RGB", (20, 20)).save(tmp_path / "images" / "LABEL_0" / "0.png")
    with pytest.raises(ValueError, match=r"other settings \(before, now\): \{'content'"):
        run_explain_dataset(arguments())
    (tmp_path / "out" / "explained.json").write_text("{")
    with pytest.raises(ValueError, match=r"explained.json' is damaged"):
        run_explain_dataset(arguments())
    (tmp_path / "out" / "explained.json").unlink()
    with pytest.raises(ValueError, match=r"holds data/\*\.parquet without explained.json"):
        run_explain_dataset(arguments())


def parquet(folder, number=9, named=True, labels=True):
    """A data set of pictures in a parquet file, and the pictures as files; returns its folder."""
    rng = np.random.default_rng(1)
    folder.mkdir(parents=True)
    rows = []
    for index in range(number):
        Image.fromarray(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(folder / "a.png")
        content = (folder / "a.png").read_bytes()
        image = {"bytes": content, "path": f"{index}.png" if named else None}
        rows.append({"image": image, **({"label": f"LABEL_{index % 3}"} if labels else {})})
    (folder / "a.png").unlink()
    features = {"image": datasets.Image(), **({"label": datasets.Value("string")} if labels else {})}
    made = datasets.Dataset.from_list(rows, features=datasets.Features(features))
    made.to_parquet(folder / "validation.parquet")
    return str(folder)


@pytest.mark.parametrize("named", [True, False])
def test_a_stream_gives_the_rows_of_the_whole_data_set(arguments, tmp_path, named, monkeypatch, caplog):
    name = parquet(tmp_path / "stored", named=named)
    run_explain_dataset(arguments(dataset_name=name))
    caplog.clear()
    streamed = arguments(dataset_name=name, streaming=True, output_dir=str(tmp_path / "streamed"))
    longest = []
    from_list = datasets.Dataset.from_list
    monkeypatch.setattr(
        datasets.Dataset,
        "from_list",
        lambda rows, **options: longest.append(len(rows)) or from_list(rows, **options),
    )
    run_explain_dataset(streamed)
    assert longest == [4, 4, 1]  # never more in memory than a shard
    assert caplog.text.count("Labels of the data set and of the classifier") == 1
    assert_same(rows_of(tmp_path / "streamed"), rows_of(tmp_path / "out"))
    kept = shards(tmp_path / "streamed")
    (tmp_path / "streamed" / "data" / list(kept)[1]).unlink()
    run_explain_dataset(streamed)
    assert longest == [4, 4, 1, 4]  # the others are passed over
    assert shards(tmp_path / "streamed") == kept


@pytest.mark.usefixtures("impatient_streams")
def test_a_part_of_a_stream(arguments, tmp_path):
    """As many images as asked for, each with its place among those that were drawn."""
    name = parquet(tmp_path / "stored")
    found = run_explain_dataset(arguments(dataset_name=name, streaming=True, max_eval_samples=5))
    assert found["images"] == 5
    assert rows_of(tmp_path / "out")["index"].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("streaming", [True, False])
def test_positions_are_those_before_broken_images_are_left_out(arguments, tmp_path, streaming):
    name = parquet(tmp_path / "stored", named=False)
    rows = datasets.Dataset.from_parquet(f"{name}/validation.parquet").cast_column(
        "image", datasets.Image(decode=False)
    )
    broken = [
        {**row, "image": {"bytes": b"no image", "path": None}} if i in (1, 6) else row for i, row in enumerate(rows)
    ]
    datasets.Dataset.from_list(broken, features=rows.features).to_parquet(f"{name}/validation.parquet")
    changes = {"dataset_name": name, "streaming": streaming}
    with pytest.raises(
        ValueError, match="1 of 4 images cannot be read: 1 " if streaming else "2 of 9 images cannot be"
    ):
        run_explain_dataset(arguments(**changes))
    run_explain_dataset(arguments(**changes, on_bad_image="skip", output_dir=str(tmp_path / "skipped")))
    found = rows_of(tmp_path / "skipped")
    assert found["index"].tolist() == [0, 2, 3, 4, 5, 7, 8]
    assert found["name"].tolist() == ["0", "2", "3", "4", "5", "7", "8"]
    assert found["label"].tolist() == [0, 2, 0, 1, 2, 1, 2]


def test_a_part_of_the_images_in_their_order(arguments, tmp_path):
    run_explain_dataset(arguments(max_eval_samples=5))
    index = rows_of(tmp_path / "out")["index"].tolist()
    assert index == sorted(index)
    assert len(set(index)) == 5
    assert index != [0, 1, 2, 3, 4]


@pytest.mark.parametrize("labels", [False, True])
def test_images_without_labels_of_the_classifier(arguments, tmp_path, labels, caplog):
    """What is predicted is explained without labels; `--target label` asks for them."""
    changes = {"validation_dir": str(tmp_path / "images" / "LABEL_0")}
    if labels:
        shutil.move(tmp_path / "images" / "LABEL_0", tmp_path / "images" / "cat")
        shutil.rmtree(tmp_path / "images" / "LABEL_1")
        changes = {}
    found = run_explain_dataset(arguments(**changes))
    assert found["labelled"] == 0
    assert found["classifier_accuracy"] is None
    assert load_dataset(str(tmp_path / "out"))["validation"]["label"] == [None] * found["images"]
    assert ("the column 'label' stays empty: labels of the data set cannot be matched" in caplog.text) is labels
    with pytest.raises(ValueError, match="cannot be matched" if labels else "no column 'label'"):
        run_explain_dataset(arguments(**changes, target="label", output_dir=str(tmp_path / "other")))


def test_half_precision_is_the_rounded_value(arguments, tmp_path):
    run_explain_dataset(arguments())
    run_explain_dataset(arguments(attributions_type="float16", output_dir=str(tmp_path / "half")))
    half, full = (rows_of(folder)["attributions"] for folder in (tmp_path / "half", tmp_path / "out"))
    assert np.array_equal(half, full.astype(np.float16).astype(np.float32))
    stored = load_dataset(str(tmp_path / "half"))["validation"]
    assert stored.features["attributions"].feature.dtype == "float16"


def test_maps_that_are_not_finite_are_refused(arguments, tmp_path):
    args = arguments(attributions_type="float16")
    explainer = SalvageModel.from_pretrained(tmp_path / "explainer")
    with torch.no_grad():
        for parameter in explainer.head.parameters():
            if parameter.ndim == 0:
                parameter.add_(1e6)
        explainer.head.class_projection.weight.mul_(1e6)
    explainer.save_pretrained(tmp_path / "explainer")
    with pytest.raises(ValueError, match=r"salvage in float16 gives NaN or infinity for \['LABEL_0/0.png'"):
        run_explain_dataset(args)


def test_a_classifier_without_patches(arguments, tiny_classifier, save_processor, tmp_path):
    tiny_classifier("resnet").save_pretrained(tmp_path / "resnet")
    save_processor(tmp_path / "resnet")
    changes = {"model_name_or_path": str(tmp_path / "resnet"), "method": "rise", "sampling_budget": 30}
    with pytest.raises(ValueError, match="patch_size is needed for a resnet model"):
        run_explain_dataset(arguments(**changes))
    run_explain_dataset(arguments(**changes, patch_size=8))
    assert rows_of(tmp_path / "out")["attributions"].shape == (9, 4)


def test_the_recipe_gives_the_arguments_again(arguments, tmp_path):
    args = arguments(method="last_attention", pixel_range=[0.0, 255.0])
    run_explain_dataset(args)
    assert ExplainDatasetArguments(**read_recipe(str(tmp_path / "out" / RECIPE), [ExplainDatasetArguments])) == args


@pytest.mark.parametrize("classes", ["target", "all"])
def test_the_data_set_is_read_in_every_way(arguments, tmp_path, classes):
    run_explain_dataset(arguments(classes=classes))
    rows = rows_of(tmp_path / "out")
    (tmp_path / "bare").mkdir()
    shutil.copytree(tmp_path / "out" / "data", tmp_path / "bare" / "data")  # without the card
    for source in ({"path": "parquet", "data_dir": str(tmp_path / "out")}, {"path": str(tmp_path / "bare")}):
        assert_same(load_dataset(**source)["validation"].with_format("numpy")[:], rows)


def test_the_card(arguments, tmp_path):
    run_explain_dataset(arguments(hub_dataset_id="org/explained-pets"))
    text = (tmp_path / "out" / "README.md").read_text()
    assert str(tmp_path) not in text
    assert "{{" not in text
    assert "{%" not in text
    assert "`classifier` looks at, for every one of 9 images of\na folder (split `validation`)" in text
    assert 'load_dataset("org/explained-pets", split="validation")' in text
    card = DatasetCard(text)
    assert card.data.to_dict()["configs"][0]["data_files"] == [
        {"split": "validation", "path": "data/validation-*.parquet"}
    ]
    for column in rows_of(tmp_path / "out"):
        assert f"\n| {column} | " in text
    assert str(tmp_path) not in (tmp_path / "out" / "explained.json").read_text()


def test_the_data_set_on_the_hub(arguments, tmp_path):
    """Uploaded without paths of this machine, and whole; shards of an earlier run are gone."""
    args = arguments(push_to_hub=True, hub_dataset_id="org/explained")
    words = [f"{name}={value!r}" for name, value in dataclasses.asdict(args).items()]
    code = f"""
    from salvage_hf.evaluation.explain_dataset import ExplainDatasetArguments, run_explain_dataset
    from datasets import load_dataset
    from huggingface_hub import snapshot_download
    run_explain_dataset(ExplainDatasetArguments({", ".join(words)}))
    rows = load_dataset(snapshot_download("org/explained", repo_type="dataset"), split="validation")
    assert rows["index"][:] == list(range(9))
    """
    old = tmp_path / "hub" / "datasets" / "org" / "explained" / "data" / "validation-00007-old.parquet"
    old.parent.mkdir(parents=True)
    old.touch()
    run_on(tmp_path, code)
    files = {str(path.relative_to(old.parents[1])) for path in old.parents[1].rglob("*") if path.is_file()}
    assert files == {"README.md", "explained.json", *(f"data/{name}" for name in shards(tmp_path / "out"))}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_name_or_path": ""}, "model_name_or_path is needed"),
        ({"explainer": None}, "give explainer, or a method that needs none, for example method='rise'"),
        ({"method": "salvage"}, "the method 'salvage' needs an explainer, got explainer=None"),
        ({"method": "rise", "explainer": "e"}, "the method 'rise' asks no explainer, got explainer='e'"),
        ({"method": "magic"}, "method='magic' is not one of"),
        ({"sampling_budget": 9}, "sampling_budget is for the methods .*, got method=None"),
        ({"images_per_shard": 0}, "images_per_shard must be at least 1, got 0"),
        ({"validation_dir": None}, "give either dataset_name or validation_dir, got None and None"),
        ({"attributions_type": "int8"}, "attributions_type='int8' is not one of float32, float16"),
    ],
)
def test_wrong_arguments(arguments, changes, message):
    with pytest.raises(ValueError, match=message):
        arguments(**changes)


def test_what_is_no_explainer_is_refused(arguments):
    args = arguments()
    with pytest.raises(ValueError, match="explainer must be a SalvageModel, its folder or its name on the Hub"):
        run_explain_dataset(dataclasses.replace(args, explainer=args.model_name_or_path))


def test_names_of_classes_are_told_apart():
    assert unique_names(["crane", "cat", "crane"]) == ["crane (0)", "cat", "crane (2)"]
