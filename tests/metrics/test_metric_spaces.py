"""Every metric's Space app starts and scores its bundled example."""

import itertools
import math
import runpy

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageClassification

from salvage_hf import MaskedClassifier, load_metric
from salvage_hf.evaluate_modules.registration import metric_scripts
from salvage_hf.evaluate_modules.spaces import MOST_IMAGES, bright_object, example, own_arguments
from salvage_hf.evaluation.scores import SCORES

SCRIPTS = metric_scripts()


def test_the_best_map_of_the_example_is_the_best():
    maps, arguments = example()
    subsets = torch.tensor(list(itertools.product([False, True], repeat=16)))  # all 65,536
    predictions = bright_object(arguments["pixel_values"], subsets[None])[0, :, 1]
    sizes, order = subsets.sum(-1), torch.tensor(maps["best"][0]).argsort(descending=True)
    for size in range(1, 17):
        most, least = torch.zeros(2, 1, 1, 16, dtype=torch.bool)
        most[..., order[:size]] = True
        least[..., order[-size:]] = True
        of_size = predictions[sizes == size]
        assert bright_object(arguments["pixel_values"], most)[0, 0, 1] == pytest.approx(of_size.max().item(), abs=1e-6)
        assert bright_object(arguments["pixel_values"], least)[0, 0, 1] == pytest.approx(of_size.min().item(), abs=1e-6)


@pytest.fixture
def own(tiny_classifier, save_processor, tmp_path):
    """The file of a visitor, and the name of a classifier."""
    tiny_classifier().save_pretrained(tmp_path / "classifier")
    save_processor(tmp_path / "classifier")
    random = np.random.default_rng(0)
    arrays = {"predictions": random.normal(size=(3, 4, 4)), "pixel_values": random.normal(size=(3, 3, 16, 16))}
    arrays["masks"] = random.random((3, 4, 4)) < 0.5
    np.savez(tmp_path / "maps.npz", **arrays)
    return str(tmp_path / "maps.npz"), str(tmp_path / "classifier"), arrays


@pytest.mark.parametrize("name", SCRIPTS)
def test_app(name, own):
    pytest.importorskip("gradio")
    from gradio_client import Client, handle_file

    file, classifier, arrays = own

    app = runpy.run_path(str(SCRIPTS[name].with_name("app.py")))["app"]
    assert not app.analytics_enabled
    try:
        _, url, _ = app.launch(prevent_thread_lock=True, server_name="127.0.0.1", quiet=True)
        client = Client(url, verbose=False)
        scores = {}
        for choice in ("best", "reversed", "constant"):
            score, curve, results = client.predict(choice, api_name="/score")
            assert (curve is None) is (SCORES[name].family == "region")
            assert score == pytest.approx(results[name], abs=1e-4)
            scores[choice] = score
        uploaded = client.predict(handle_file(file), classifier, None, 40, api_name="/score_own")
        with pytest.raises(Exception, match="file must be an npz file, got none"):
            client.predict(None, classifier, None, 40, api_name="/score_own")
    finally:
        app.close()
    assert math.isfinite(scores["constant"])
    assert uploaded[2]["per_image"] == pytest.approx(scored_here(name, classifier, arrays), abs=1e-5)
    if SCORES[name].higher_is_better:
        assert scores["best"] > scores["constant"] > scores["reversed"]
    else:
        assert scores["best"] < scores["constant"] < scores["reversed"]


def scored_here(name, classifier, arrays):
    """The scores of a visitor's maps, for the classes that the classifier predicts."""
    metric = load_metric(name)
    if SCORES[name].family == "region":
        return metric.compute(predictions=arrays["predictions"], masks=arrays["masks"])["per_image"]
    pixels = torch.tensor(arrays["pixel_values"]).float()
    with torch.no_grad():
        classes = AutoModelForImageClassification.from_pretrained(classifier)(pixels).logits.argmax(-1)
    return metric.compute(
        predictions=arrays["predictions"].reshape(3, 16),
        references=classes,
        pixel_values=pixels,
        model=MaskedClassifier.from_pretrained(classifier),
        **({"budget": 40} if SCORES[name].family == "relative" else {}),
    )["per_image"]


RELATIVE = ("predictions", "references", "pixel_values", "model", "budget")


@pytest.mark.parametrize(
    ("arrays", "classifier", "message"),
    [
        (None, "c", "file must be an npz file of arrays, but it cannot be read"),
        ({"predictions": np.array([object()])}, "c", "file must be an npz file of arrays, but it cannot be read"),
        ({"maps": np.ones((2, 4))}, "c", "file has no array 'predictions'"),
        ({"predictions": np.ones((2, 4))}, "c", "file has no array 'pixel_values'"),
        ({"predictions": np.ones((2, 4)), "pixel_values": np.ones((2, 3, 4, 4))}, "", "classifier must be the name"),
        (
            {"predictions": np.ones((MOST_IMAGES + 1, 4)), "pixel_values": np.ones((MOST_IMAGES + 1, 3, 4, 4))},
            "c",
            "file must have at most 64 images, has 65",
        ),
    ],
)
def test_what_a_visitor_gives_is_checked(arrays, classifier, message, tmp_path):
    file = tmp_path / "maps.npz"
    file.write_bytes(b"no archive") if arrays is None else np.savez(file, **arrays)
    with pytest.raises(ValueError, match=message):
        own_arguments(RELATIVE, str(file), classifier, None, 160)
