"""The pipeline "image-attribution": what it lists, whatever its input, and where its maps and colours lie."""

import json
from itertools import chain

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, pipeline

from salvage_hf.modeling import (
    ImageAttributionPipeline,
    SalvageConfig,
    SalvageForImageClassification,
    SalvageModel,
    overlay,
    picture_geometry,
)
from salvage_hf.targets import activation, target_attributions, target_names


def pictures(count=3, seed=0):
    """Noise pictures of different sizes."""
    random = np.random.default_rng(seed)
    sizes = [(20 + 7 * index, 30 + 3 * index) for index in range(count)]
    return [Image.fromarray(random.integers(0, 255, (*size, 3), dtype=np.uint8)) for size in sizes]


@pytest.fixture
def folder(salvage_model, save_processor, tmp_path):
    """A factory: a folder with a tiny explainer and a processor that resizes to 20 pixels and crops 16."""

    def build(**options):
        model = salvage_model(**options)
        model.config.id2label = {index: f"kind {index}" for index in range(model.config.num_labels)}
        model.save_pretrained(tmp_path / "model")
        save_processor(tmp_path / "model")
        return str(tmp_path / "model")

    return build


def same(ours, theirs):
    assert [len(listed) for listed in ours] == [len(listed) for listed in theirs]
    for one, other in zip(chain(*ours), chain(*theirs), strict=True):
        assert one["label"] == other["label"]
        assert one["score"] == pytest.approx(other["score"], abs=1e-6)
        np.testing.assert_allclose(one["map"], other["map"], atol=1e-5)
        assert one["box"] == other["box"]
        assert np.abs(np.asarray(one["overlay"], int) - np.asarray(other["overlay"], int)).max() <= 1


@pytest.mark.parametrize("model_class", [SalvageModel, SalvageForImageClassification])
@pytest.mark.parametrize("num_labels", [1, 3])
def test_it_lists_what_the_model_says(folder, model_class, num_labels):
    explain = pipeline("image-attribution", model=folder(num_labels=num_labels, model_class=model_class), device="cpu")
    assert type(explain) is ImageAttributionPipeline
    assert type(explain.model) is SalvageModel  # the weights of both classes are the same
    names = target_names([f"kind {index}" for index in range(num_labels)])
    for picture, listed in zip(pictures(), explain(pictures()), strict=True):
        with torch.no_grad():
            output = explain.model(explain.image_processor(picture, return_tensors="pt")["pixel_values"])
        probabilities = activation(output.logits)[0]
        probabilities = torch.cat([1 - probabilities, probabilities]) if num_labels == 1 else probabilities
        assert [entry["label"] for entry in listed] == [names[i] for i in probabilities.argsort(descending=True)]
        for entry in listed:
            target = torch.tensor([names.index(entry["label"])])
            assert entry["score"] == pytest.approx(probabilities[target].item(), abs=1e-6)
            assert entry["map"].dtype == np.float32
            literal = target_attributions(output.attributions, target).view(4, 4).numpy()
            np.testing.assert_allclose(entry["map"], literal, atol=1e-6)
            assert entry["overlay"].size == picture.size
        geometry = picture_geometry(explain.image_processor, *picture.size)
        assert listed[0]["box"] == geometry.box
        limit = max(np.abs(entry["map"]).max() for entry in listed)
        drawn = overlay(picture, listed[0]["map"], geometry, limit)
        assert np.array_equal(np.asarray(listed[0]["overlay"]), np.asarray(drawn))


def test_every_form_of_input_gives_the_same(folder, tmp_path):
    explain = pipeline("image-attribution", model=folder(), device="cpu")
    paths = [str(tmp_path / f"{index}.png") for index in range(3)]
    for picture, path in zip(pictures(), paths, strict=True):
        picture.save(path)
    expected = [explain(picture) for picture in pictures()]
    same(explain(paths), expected)
    same(explain([np.asarray(picture) for picture in pictures()]), expected)
    for batch_size in (1, 2, 3):
        same(explain(pictures(), batch_size=batch_size), expected)
        same(list(explain((path for path in paths), batch_size=batch_size)), expected)

    class Data(torch.utils.data.Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return pictures()[index]

    same(list(explain(Data(), batch_size=2)), expected)


def test_chosen_classes(folder):
    path = folder(num_labels=7)
    explain = pipeline("image-attribution", model=path, device="cpu")
    (picture,) = pictures(1)
    everything = explain(picture, top_k=99)
    assert len(everything) == 7
    assert len(explain(picture)) == 5
    assert [entry["label"] for entry in explain(picture, top_k=2)] == [entry["label"] for entry in everything[:2]]
    for chosen in (["kind 6", 0], [0, 6], ("kind 0", "kind 6")):
        wanted = [entry["label"] for entry in everything if entry["label"] in ("kind 0", "kind 6")]
        assert [entry["label"] for entry in explain(picture, classes=chosen)] == wanted
    assert [entry["label"] for entry in explain(picture, classes="kind 3")] == ["kind 3"]
    named = pipeline("image-attribution", model=path, device="cpu", classes=[2])
    assert [entry["label"] for entry in named(picture)] == ["kind 2"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "top_k must be a whole number from 1, got 0"),
        ({"top_k": True}, "top_k must be a whole number from 1, got True"),
        ({"top_k": 1.5}, "top_k must be a whole number from 1, got 1.5"),
        ({"classes": "dog"}, "classes must be names or numbers of the 3: kind 0, kind 1, kind 2; got 'dog'"),
        ({"classes": [3]}, "got 3"),
        ({"classes": [-1]}, "got -1"),
        ({"classes": [True]}, "got True"),
        ({"classes": []}, "classes must name one class or more"),
    ],
)
def test_wrong_options_are_refused(folder, options, message):
    explain = pipeline("image-attribution", model=folder(), device="cpu")
    with pytest.raises(ValueError, match=message):
        explain(pictures(1)[0], **options)


def test_maps_on_the_pixels_lie_where_the_processor_crops(folder):
    """A literal second version: each pixel's value is interpolated between the centres of the four nearest patches."""
    model = SalvageModel.from_pretrained(folder())
    processor = AutoImageProcessor.from_pretrained(folder())
    sizes = [(40, 60), (60, 40), (20, 20)]  # 20 pixels after the resize, of which 16 are kept
    with torch.no_grad():
        output = model(torch.randn(3, 3, 16, 16))
    placed = model.post_process_attributions(output, sizes, processor)
    for index, (height, width) in enumerate(sizes):
        scale = min(height, width) / 20
        left, top = (width - 16 * scale) / 2, (height - 16 * scale) / 2
        best = output.logits[index].argmax()
        values = output.attributions[index, :, best].view(4, 4)
        expected = torch.full((height, width), torch.nan)
        for y in range(round(top), round(height - top)):
            for x in range(round(left), round(width - left)):
                row = min(max((y + 0.5 - top) / (4 * scale) - 0.5, 0), 3)
                column = min(max((x + 0.5 - left) / (4 * scale) - 0.5, 0), 3)
                r, c = min(int(row), 2), min(int(column), 2)
                a, b = row - r, column - c
                above = (1 - b) * values[r, c] + b * values[r, c + 1]
                below = (1 - b) * values[r + 1, c] + b * values[r + 1, c + 1]
                expected[y, x] = (1 - a) * above + a * below
        assert placed[index].shape == (1, height, width)
        torch.testing.assert_close(placed[index][0], expected, atol=1e-4, rtol=1e-4, equal_nan=True)


def test_classes_of_the_maps_on_the_pixels(salvage_model, folder):
    processor = AutoImageProcessor.from_pretrained(folder())
    model = salvage_model(num_labels=1)
    with torch.no_grad():
        output = model(torch.randn(2, 3, 16, 16))
    both = model.post_process_attributions(output, torch.tensor([[30, 20]] * 2), processor, torch.tensor([[0, 1]] * 2))
    for index, maps in enumerate(both):
        torch.testing.assert_close(maps[0], -maps[1], equal_nan=True)
        predicted = model.post_process_attributions(output, [(30, 20)] * 2, processor)[index]
        torch.testing.assert_close(predicted[0], maps[int(output.logits[index] > 0)], equal_nan=True)
    with pytest.raises(ValueError, match="target_sizes must be the \\(height, width\\) of 2 pictures"):
        model.post_process_attributions(output, [(30, 20)], processor)
    processor.crop_size = {"height": 20, "width": 20}
    with pytest.raises(ValueError, match="image_processor makes 5 x 5 patches of a picture of 20 x 30 pixels, but"):
        model.post_process_attributions(output, [(30, 20)] * 2, processor)


def test_the_colours_are_matplotlibs():
    values = np.linspace(-1, 1, 201, dtype=np.float32)[None]
    drawn = np.asarray(overlay(Image.new("RGB", (201, 1), "black"), values), float)[0] / 255
    wanted = matplotlib.colormaps["RdBu_r"]((values[0] + 1) / 2)[:, :3] * (0.1 + 0.65 * np.abs(values[0]))[:, None]
    assert np.abs(drawn - wanted).max() < 0.01


def test_a_loaded_pipeline_can_be_saved(folder, tmp_path):
    explain = pipeline("image-attribution", model=folder(), device="cpu")
    explain.save_pretrained(tmp_path / "again")
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    named = {"image-attribution": {"impl": "pipeline_salvage.ImageAttributionPipeline", "pt": ["AutoModel"]}}
    assert config["custom_pipelines"] == named
    assert SalvageConfig.from_pretrained(tmp_path / "again").custom_pipelines == {}  # registered here
    same(pipeline("image-attribution", model=str(tmp_path / "again"), device="cpu")(pictures()), explain(pictures()))
