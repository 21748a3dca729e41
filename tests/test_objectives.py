import math

import pytest
import torch

from salvage_hf.objectives import OBJECTIVES, SubsetValues, additive_efficient, jensen_shannon
from salvage_hf.subsets import LAWS


def probabilities(logits):
    """Softmax, or the two probabilities of a Bernoulli distribution, in double precision."""
    logits = logits.double()
    if logits.shape[-1] == 1:
        present = 1 / (1 + (-logits).exp())
        return torch.cat([1 - present, present], dim=-1)
    return logits.exp() / logits.exp().sum(-1, keepdim=True)


def literal_jensen_shannon(p, q):
    """(KL(p || m) + KL(q || m)) / 2 with m = (p + q) / 2, class by class; 0 log 0 = 0."""
    total = 0.0
    for p_k, q_k in zip(p.tolist(), q.tolist(), strict=True):
        m_k = (p_k + q_k) / 2
        total += 0.5 * p_k * math.log(p_k / m_k) if p_k > 0 else 0.0
        total += 0.5 * q_k * math.log(q_k / m_k) if q_k > 0 else 0.0
    return total


def random_logits(*shape, scale=3.0, seed=0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("num_labels", [1, 2, 5, 100])
@pytest.mark.parametrize("scale", [0.1, 3.0, 20.0])
def test_equals_the_definition(num_labels, scale):
    u, v = random_logits(4, 3, num_labels, scale=scale), random_logits(4, 3, num_labels, scale=scale, seed=1)
    divergence = jensen_shannon(u, v)
    assert divergence.shape == (4, 3)
    for b in range(4):
        for m in range(3):
            expected = literal_jensen_shannon(probabilities(u[b, m]), probabilities(v[b, m]))
            assert divergence[b, m].item() == pytest.approx(expected, rel=1e-4, abs=2e-7)


def test_one_label_equals_two_classes():
    u, v = random_logits(6, 1), random_logits(6, 1, seed=1)
    two = [torch.cat([torch.zeros_like(logits), logits], dim=-1) for logits in (u, v)]
    torch.testing.assert_close(jensen_shannon(u, v), jensen_shannon(*two))


@pytest.mark.parametrize("num_labels", [1, 4])
def test_symmetric_bounded_and_zero_for_equal(num_labels):
    u, v = random_logits(50, num_labels, scale=10), random_logits(50, num_labels, scale=10, seed=1)
    divergence = jensen_shannon(u, v)
    torch.testing.assert_close(divergence, jensen_shannon(v, u), rtol=0, atol=1e-7)
    assert divergence.min() > 0
    assert divergence.max() <= math.log(2) + 1e-6
    assert jensen_shannon(u, u).abs().max() < 1e-6
    if num_labels > 1:
        torch.testing.assert_close(jensen_shannon(u + 7, v - 3), divergence, rtol=1e-4, atol=1e-6)


def test_disjoint_distributions_are_log_2_apart():
    u = torch.tensor([[200.0, 0.0, 0.0], [1e4, -1e4, 0.0]])
    v = torch.tensor([[0.0, 200.0, 0.0], [-1e4, 0.0, 1e4]])
    torch.testing.assert_close(jensen_shannon(u, v), torch.full((2,), math.log(2)))
    torch.testing.assert_close(jensen_shannon(torch.tensor([-300.0]), torch.tensor([300.0])), torch.tensor(math.log(2)))


ONE_HOT = [0.0, -math.inf, -math.inf]


@pytest.mark.parametrize(
    ("u", "v", "expected"),
    [
        ([0.0, 0.0, 0.0], ONE_HOT, literal_jensen_shannon(torch.full((3,), 1 / 3), torch.tensor([1.0, 0.0, 0.0]))),
        (ONE_HOT, ONE_HOT, 0.0),
        (ONE_HOT, [-math.inf, 0.0, -math.inf], math.log(2)),
        ([3.0e38, -3.0e38, 0.0], [-3.0e38, 3.0e38, 0.0], math.log(2)),
        ([1e5, 0.0, -1e5], [1e5, 0.0, -1e5], 0.0),
        ([-math.inf, 0.0, 0.0], [-math.inf, 0.0, 0.0], 0.0),
        ([0.0], [math.inf], literal_jensen_shannon(torch.tensor([0.5, 0.5]), torch.tensor([0.0, 1.0]))),
        ([0.0], [-math.inf], literal_jensen_shannon(torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0]))),
        ([-math.inf], [math.inf], math.log(2)),
        ([1e30], [1e30], 0.0),
    ],
)
def test_finite_with_finite_gradients_where_probabilities_vanish(u, v, expected):
    u = torch.tensor(u, requires_grad=True)
    divergence = jensen_shannon(u, torch.tensor(v))
    assert divergence.item() == pytest.approx(expected, abs=1e-6)
    divergence.backward()
    assert u.grad.isfinite().all()


@pytest.mark.parametrize("num_labels", [1, 4])
def test_gradient_equals_that_of_the_definition(num_labels):
    u, v = random_logits(num_labels), random_logits(num_labels, seed=1)
    u.requires_grad_()
    jensen_shannon(u, v).backward()
    for k in range(num_labels):
        step = torch.zeros(num_labels, dtype=torch.float64)
        step[k] = 1e-5
        q = probabilities(v)
        slope = literal_jensen_shannon(probabilities(u.detach() + step), q)
        slope -= literal_jensen_shannon(probabilities(u.detach() - step), q)
        assert u.grad[k].item() == pytest.approx(slope / 2e-5, rel=1e-3, abs=1e-6)


def test_a_gradient_pulls_towards_a_one_hot_target():
    u = torch.zeros(3, requires_grad=True)
    jensen_shannon(u, torch.tensor(ONE_HOT)).backward()
    assert u.grad[0] < 0
    assert (u.grad[1:] > 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_labels", [1, 5])
def test_computed_in_float32_under_autocast(num_labels, dtype):
    u, v = random_logits(8, num_labels).to(dtype), random_logits(8, num_labels, seed=1).to(dtype)
    expected = jensen_shannon(u.float(), v.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        divergence = jensen_shannon(u, v)
    assert divergence.dtype == torch.float32
    assert torch.equal(divergence, expected)


def test_the_registry_holds_the_published_recipes():
    assert list(OBJECTIVES) == ["salvage", "vit_shapley", "fastshap"]
    recipes = {name: (o.sampling, o.learning_rate, o.paired_values, o.asks_ends) for name, o in OBJECTIVES.items()}
    assert recipes["salvage"] == ("guided", 1e-5, True, False)
    assert recipes["vit_shapley"] == recipes["fastshap"] == ("shapley_kernel", 1e-4, False, True)
    exponents = {name: o.guidance_exponent for name, o in OBJECTIVES.items()}
    assert exponents == {"salvage": 4, "vit_shapley": 1, "fastshap": 1}  # in the paper all are 1
    for objective in OBJECTIVES.values():
        assert objective.sampling in LAWS
        assert not LAWS[objective.validation_law].guided
        assert objective.asks_ends or not objective.normalised


def test_the_salvage_loss_is_the_divergence_of_u_and_v(salvage_model):
    model = salvage_model()
    with torch.no_grad():
        output = model(torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    subsets = torch.rand(2, 5, 16, generator=torch.Generator().manual_seed(1)) < 0.5
    logits = random_logits(2, 5, 3)
    losses = OBJECTIVES["salvage"].loss(model, output, subsets, SubsetValues(logits))
    torch.testing.assert_close(losses, jensen_shannon(model.subset_logits(output, subsets), logits))


@pytest.mark.parametrize("num_labels", [1, 3])
@pytest.mark.parametrize("name", ["vit_shapley", "fastshap"])
def test_shapley_losses_equal_their_definition(salvage_model, name, num_labels):
    model = salvage_model(num_labels=num_labels, paired_values=False)
    with torch.no_grad():
        output = model(torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    subsets = torch.rand(2, 5, 16, generator=torch.Generator().manual_seed(1)) < 0.5
    logits, ends = random_logits(2, 5, num_labels), random_logits(2, 2, num_labels, seed=2)
    losses = OBJECTIVES[name].loss(model, output, subsets, SubsetValues(logits, ends))

    def v(of):  # probabilities; with one label that of label 1
        return probabilities(of)[..., 1:] if num_labels == 1 else probabilities(of)

    for image in range(2):
        empty, full = v(ends[image, 0]), v(ends[image, 1])
        for m in range(5):
            error = 0.0
            for k in range(num_labels):
                phi = output.attributions[image, :, k].double().tolist()
                if name == "vit_shapley":
                    gap = float(full[k] - empty[k]) - sum(phi)
                    phi = [value + gap / 16 for value in phi]
                predicted = float(empty[k]) + sum(p for p, shown in zip(phi, subsets[image, m], strict=True) if shown)
                error += (float(v(logits[image, m])[k]) - predicted) ** 2 / num_labels
            assert losses[image, m].item() == pytest.approx(16 * error, rel=1e-4)


def test_additive_efficient_values_sum_to_the_difference_of_the_ends():
    values, full, empty = random_logits(2, 9, 3), random_logits(2, 3, seed=1), random_logits(2, 3, seed=2)
    moved = additive_efficient(values, full, empty)
    torch.testing.assert_close(moved.sum(dim=1), full - empty)
    torch.testing.assert_close((moved - values).std(dim=1), torch.zeros(2, 3), rtol=0, atol=1e-6)
