from collections import defaultdict

import pytest
import torch

from salvage_hf.replay import ReplayStore


class LiteralStore:
    """The same with Python lists: the newest `capacity` pairs of an image."""

    def __init__(self, capacity):
        self.capacity, self.of_image = capacity, defaultdict(list)

    def append(self, ids, subsets, logits):
        for image, drawn, values in zip(ids.tolist(), subsets.tolist(), logits.tolist(), strict=True):
            pairs = [(tuple(s), tuple(v)) for s, v in zip(drawn, values, strict=True)]
            self.of_image[image] = (self.of_image[image] + pairs)[-self.capacity :]


def normalised(logits):
    return logits if logits.shape[-1] == 1 else logits.log_softmax(dim=-1)


@pytest.mark.parametrize("num_labels", [1, 3])
@pytest.mark.parametrize("num_patches", [1, 8, 13])
@pytest.mark.parametrize(("capacity", "num_new"), [(4, 4), (5, 2), (6, 1)])
def test_the_store_holds_the_newest_pairs(capacity, num_new, num_patches, num_labels):
    generator = torch.Generator().manual_seed(0)
    store, literal = ReplayStore(5, num_patches, num_labels, capacity), LiteralStore(capacity)
    for _ in range(7):
        ids = torch.randperm(4, generator=generator)[:3]  # image 4 is never seen
        subsets = torch.rand(3, num_new, num_patches, generator=generator) < 0.5
        logits = 8 * torch.randn(3, num_new, num_labels, generator=generator)
        store.append(ids, subsets, logits)
        literal.append(ids, subsets, normalised(logits))
    subsets, logits, filled = store.pairs(torch.arange(5))
    assert not filled[4].any()
    for image in range(4):
        expected = sorted(literal.of_image[image])
        kept = filled[image]
        found = sorted(zip(subsets[image, kept].tolist(), logits[image, kept].tolist(), strict=True))
        assert [tuple(s) for s, _ in found] == [s for s, _ in expected]
        torch.testing.assert_close(
            torch.tensor([v for _, v in found]), torch.tensor([v for _, v in expected]), rtol=1e-3, atol=1e-3
        )


def test_both_tails_of_a_probability_survive():
    """A probability of 1e-12 in float16 would be 0."""
    logits = torch.tensor([[[27.6, 0.0], [0.0, 27.6], [0.001, 0.0], [-torch.inf, 0.0]]])
    store = ReplayStore(1, 4, 2, 4)
    store.append(torch.tensor([0]), torch.ones(1, 4, 4, dtype=torch.bool), logits)
    kept = store.pairs(torch.tensor([0]))[1]
    torch.testing.assert_close(kept.softmax(-1), logits.softmax(-1), rtol=2e-2, atol=1e-6)
    assert kept.isfinite().all()


@pytest.fixture
def filled_store():
    store = ReplayStore(3, 10, 2, 4, key={"classifier": "abc", "masking": "drop"})
    generator = torch.Generator().manual_seed(1)
    for ids in ([0, 2], [2, 1], [2, 0]):
        store.append(
            torch.tensor(ids),
            torch.rand(2, 2, 10, generator=generator) < 0.5,
            torch.randn(2, 2, 2, generator=generator),
        )
    return store


def same(store, other):
    return all(torch.equal(mine, other.state_dict()[name]) for name, mine in store.state_dict().items())


def test_a_file_brings_the_store_back(filled_store, tmp_path):
    filled_store.save(tmp_path / "replay.safetensors")
    other = ReplayStore(3, 10, 2, 4, key={"classifier": "abc", "masking": "drop"})
    assert not same(other, filled_store)
    other.load(tmp_path / "replay.safetensors")
    assert same(other, filled_store)
    assert [path.name for path in tmp_path.iterdir()] == ["replay.safetensors"]


@pytest.mark.parametrize(
    ("size", "key", "message"),
    [
        ((3, 10, 2, 4), {"classifier": "abd", "masking": "drop"}, r"'classifier': \('abc', 'abd'\)"),
        ((3, 10, 2, 4), {"classifier": "abc", "masking": "zero"}, r"'masking': \('drop', 'zero'\)"),
        ((4, 10, 2, 4), {"classifier": "abc", "masking": "drop"}, r"'num_images': \('3', '4'\)"),
        ((3, 9, 2, 4), {"classifier": "abc", "masking": "drop"}, r"'num_patches': \('10', '9'\)"),
        ((3, 10, 3, 4), {"classifier": "abc", "masking": "drop"}, r"'num_labels': \('2', '3'\)"),
        ((3, 10, 2, 8), {"classifier": "abc", "masking": "drop"}, r"'capacity': \('4', '8'\)"),
    ],
)
def test_values_of_something_else_are_refused(filled_store, tmp_path, size, key, message):
    filled_store.save(tmp_path / "replay.safetensors")
    with pytest.raises(ValueError, match=message):
        ReplayStore(*size, key=key).load(tmp_path / "replay.safetensors")


def test_a_missing_or_broken_file_is_told(filled_store, tmp_path):
    with pytest.raises(ValueError, match="nowhere' is not a file"):
        filled_store.load(tmp_path / "nowhere")
    filled_store.save(tmp_path / "replay.safetensors")
    whole = (tmp_path / "replay.safetensors").read_bytes()
    (tmp_path / "replay.safetensors").write_bytes(whole[:-10])
    with pytest.raises(ValueError, match="cannot be read"):
        filled_store.load(tmp_path / "replay.safetensors")


def test_memory_is_what_the_docstring_says():
    store = ReplayStore(10, 256, 10, 32)
    size = sum(tensor.numel() * tensor.element_size() for tensor in store.state_dict().values())
    assert size / 10 * 9469 == pytest.approx(16e6, rel=0.05)
