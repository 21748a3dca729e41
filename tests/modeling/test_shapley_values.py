"""Trained explainers against the exact Shapley values (eq. 1, by enumeration) of a classifier with interactions."""

import itertools
import math

import pytest
import torch

from salvage_hf import MaskedClassifier
from salvage_hf.modeling import SalvageModel
from salvage_hf.objectives import OBJECTIVES, SubsetValues
from salvage_hf.subsets import LAWS

N = 9


def all_subsets():
    return torch.tensor(list(itertools.product([False, True], repeat=N)))


def exact_values(game):
    """Equation 1 for every class: v of all 2^N subsets in the order of `all_subsets`, [2^N, K] -> [N, K]."""
    number = {tuple(subset): index for index, subset in enumerate(all_subsets().tolist())}
    values = torch.zeros(N, game.shape[-1], dtype=torch.float64)
    for subset, index in number.items():
        weight = math.factorial(sum(subset)) * math.factorial(N - sum(subset) - 1) if sum(subset) < N else 0
        for patch in range(N):
            if not subset[patch]:
                with_patch = number[(*subset[:patch], True, *subset[patch + 1 :])]
                values[patch] += weight / math.factorial(N) * (game[with_patch] - game[index]).double()
    return values


@pytest.fixture(scope="module")
def trained():
    """A factory: an explainer trained against a random classifier on a few images, with classifier and images."""

    def train(objective, classifier, pixel_values, steps=300):
        v, kind = MaskedClassifier(classifier), OBJECTIVES[objective]
        torch.manual_seed(0)
        model = SalvageModel.from_classifier(classifier, paired_values=kind.paired_values)
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
        everything = all_subsets().expand(len(pixel_values), -1, -1)
        logits = v.logits(pixel_values, everything)
        ends, powers = logits[:, [0, -1]], 2 ** torch.arange(N - 1, -1, -1)
        generator = torch.Generator().manual_seed(0)
        scores = torch.zeros(len(pixel_values), N)  # the validation laws do not read them
        for _ in range(steps):
            drawn = LAWS[kind.validation_law].draw(scores, 32, generator)
            asked = logits.gather(1, (drawn * powers).sum(dim=-1)[..., None].expand(-1, -1, logits.shape[-1]))
            loss = kind.loss(model, model(pixel_values), drawn, SubsetValues(asked, ends)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            return model(pixel_values).attributions, logits

    return train


@pytest.mark.parametrize(("objective", "least"), [("vit_shapley", 0.95), ("fastshap", 0.95), ("salvage", 0.95)])
def test_values_of_a_trained_explainer_correlate_with_the_exact_ones(
    trained, tiny_classifier, images, objective, least
):
    """ViT-Shapley and FastSHAP explain probabilities, Salvage log-probabilities that are centred over the classes."""
    classifier = tiny_classifier("dinov2")
    found, logits = trained(objective, classifier, images(3, 12))
    for image in range(3):
        if OBJECTIVES[objective].asks_ends:
            game = logits[image].softmax(dim=-1)
        else:
            game = logits[image].log_softmax(dim=-1)
            game = game - game.mean(dim=-1, keepdim=True)
        exact = exact_values(game)
        for label in range(exact.shape[-1]):
            pair = torch.stack([found[image, :, label].double(), exact[:, label]])
            assert torch.corrcoef(pair)[0, 1] > least, (image, label, torch.corrcoef(pair)[0, 1])
