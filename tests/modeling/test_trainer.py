"""transformers' Trainer on `SalvageForImageClassification`."""

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainingArguments

from salvage_hf.modeling import SalvageForImageClassification

NUM_IMAGES = 8


@pytest.fixture
def trainer(salvage_model, images, tmp_path):
    """A factory: a Trainer of a tiny model, with batch size and accumulation steps."""
    data = [{"pixel_values": pixels, "labels": index % 3} for index, pixels in enumerate(images(NUM_IMAGES))]

    def build(batch_size: int, accumulation: int, model_class=SalvageForImageClassification):
        model = salvage_model(3, model_class=model_class)
        arguments = TrainingArguments(
            str(tmp_path / "run"),
            per_device_train_batch_size=batch_size,
            per_device_eval_batch_size=3,
            gradient_accumulation_steps=accumulation,
            max_steps=1,
            logging_steps=1,
            learning_rate=1e-3,
            optim="sgd",
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        correct = lambda prediction: {"accuracy": float((prediction.predictions.argmax(-1) == 0).mean())}  # noqa: E731
        return Trainer(model, arguments, train_dataset=data, eval_dataset=data, compute_metrics=correct)

    return build


def test_accumulated_batches_give_the_loss_and_step_of_one_large_batch(trainer):
    large, small = trainer(NUM_IMAGES, 1), trainer(2, 4)
    losses = [run.train().training_loss for run in (large, small)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    with torch.no_grad():
        for a, b in zip(large.model.parameters(), small.model.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


def test_evaluation_gathers_the_logits_alone(trainer):
    run = trainer(NUM_IMAGES, 1)
    scores = run.evaluate()
    assert np.isfinite(scores["eval_loss"])
    assert 0 <= scores["eval_accuracy"] <= 1
    assert run.predict(run.eval_dataset).predictions.shape == (NUM_IMAGES, 3)
