"""Every metric's Space app starts and scores its bundled example."""

import itertools
import math
import runpy

import pytest
import torch

from salvage_hf.evaluate_modules.registration import metric_scripts
from salvage_hf.evaluate_modules.spaces import bright_object, example
from salvage_hf.evaluation.scores import SCORES

gradio = pytest.importorskip("gradio")
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


@pytest.mark.parametrize("name", SCRIPTS)
def test_app(name):
    from gradio_client import Client

    app = runpy.run_path(str(SCRIPTS[name].with_name("app.py")))["app"]
    assert not app.analytics_enabled
    try:
        _, url, _ = app.launch(prevent_thread_lock=True, server_name="127.0.0.1", quiet=True)
        client = Client(url, verbose=False)
        scores = {}
        for choice in ("best", "reversed", "constant"):
            score, results = client.predict(choice, api_name="/score")
            assert score == pytest.approx(results[name], abs=1e-4)
            scores[choice] = score
    finally:
        app.close()
    assert math.isfinite(scores["constant"])
    if SCORES[name].higher_is_better:
        assert scores["best"] > scores["constant"] > scores["reversed"]
    else:
        assert scores["best"] < scores["constant"] < scores["reversed"]
