"""The paper's whole idea on games whose Shapley values are known: training must find these values."""

import pytest
import torch

from salvage_hf import subsets as sampling
from salvage_hf.modeling import SalvageOutput
from salvage_hf.objectives import jensen_shannon

N = 6
TOLERANCE = 0.02  # values are of order 0.7


def fit(model, v_logits, num_labels, draw_subsets, steps=800):
    """Trains the phi+ and phi- of one image directly, without a network, by the paper's eq. 5."""
    free = torch.zeros(2, 1, N, num_labels, requires_grad=True)
    optimizer = torch.optim.Adam([free], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        positive, negative = free
        output = SalvageOutput(attributions=positive - negative, positive_values=positive, negative_values=negative)
        subsets = draw_subsets(output)
        loss = jensen_shannon(model.subset_logits(output, subsets), v_logits(subsets)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    positive, negative = free.detach()[:, 0]
    return positive, negative, loss.item()


def centred(values):
    return values - values.mean(-1, keepdim=True) if values.shape[-1] > 1 else values


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("num_labels", [1, 3])
def test_additive_games_are_recovered(salvage_model, num_labels, guided):
    """With v(S) = sigma(bias + sum of visible values), training finds attributions and the sum of phi-.

    With several classes, they are determined up to what softmax ignores. The law of the subsets does not matter.
    """
    generator = torch.Generator().manual_seed(num_labels)
    values, bias = (0.7 * torch.randn(N + 1, num_labels, generator=generator)).split([N, 1])

    def v_logits(subsets):
        return subsets.float() @ values + bias

    def draw(output):
        if guided:
            return sampling.attribution_guided(output.attributions[..., 0], 32, generator=generator)
        return sampling.uniform(1, 32, N, generator=generator)

    positive, negative, loss = fit(salvage_model(num_labels), v_logits, num_labels, draw)
    assert loss < 1e-5
    torch.testing.assert_close(centred(positive - negative), centred(values), rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(centred(negative.sum(0)), centred(bias[0]), rtol=0, atol=TOLERANCE)
