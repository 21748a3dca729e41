import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ.setdefault("HF_EVALUATE_OFFLINE", "1")

import evaluate
import pytest

from salvage_hf.evaluate_modules import registration

registration.register()


@pytest.fixture
def load():
    """`evaluate.load` without cache files, whose locks outlive a failed compute."""
    return lambda name: evaluate.load(name, keep_in_memory=True)
