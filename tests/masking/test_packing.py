"""Rows of all sizes in one sequence give the numbers of rows on their own."""

import inspect
import itertools
import types

import pytest
import torch
from partial_images import N, masked, random_subsets
from torch import nn
from transformers import AttentionInterface, Dinov2ForImageClassification
from transformers.modeling_outputs import ImageClassifierOutput

from salvage_hf import MaskedClassifier
from salvage_hf.masking import packing, strategies
from salvage_hf.masking.masked_classifier import tokens_that_fit
from salvage_hf.masking.packing import PackedRows, can_be_packed
from salvage_hf.vision_families import FAMILIES

FAMILIES_THAT_DROP = ["dinov2", "dinov2_with_registers", "vit", "deit", "deit_teacher"]


@pytest.fixture
def packed_calls(monkeypatch):
    """The lengths of the rows of every packed forward."""
    calls = []

    class Counting(packing.PackedClassifier):
        def logits(self, tokens, lengths):
            calls.append(lengths.tolist())
            assert len(tokens) == lengths.sum()
            return super().logits(tokens, lengths)

    monkeypatch.setattr(strategies, "PackedClassifier", Counting)
    return calls


def row_by_row(v, pixel_values, subsets):
    """v(S) of one subset of one image at a time, with a hook that does nothing: it keeps rows from being packed."""
    handle = FAMILIES[v.config.model_type].block_list(v.classifier)[0].register_forward_hook(lambda *_: None)
    rows = [
        torch.stack([v(pixel_values[b : b + 1], subsets[b : b + 1, m : m + 1])[0, 0] for m in range(subsets.shape[1])])
        for b in range(len(subsets))
    ]
    handle.remove()
    return torch.stack(rows)


@pytest.mark.parametrize("num_labels", [1, 3])
@pytest.mark.parametrize("family", FAMILIES_THAT_DROP)
def test_packing_equals_dropping(tiny_classifier, images, packed_calls, family, num_labels):
    v, pixel_values, subsets = masked(tiny_classifier(family, num_labels=num_labels)), images(3), random_subsets(3, 20)
    subsets[0, :2], subsets[1, 3], subsets[2, 5:7] = False, True, False
    logits = v.logits(pixel_values, subsets)
    assert len(packed_calls) == 1
    assert len(packed_calls[0]) == 60
    torch.testing.assert_close(logits, row_by_row(v, pixel_values, subsets).detach(), rtol=0, atol=1e-5)
    assert len(packed_calls) == 1


@pytest.mark.parametrize("family", FAMILIES_THAT_DROP)
@pytest.mark.parametrize("size", [0, 1, N])
def test_all_rows_of_one_size(tiny_classifier, images, packed_calls, family, size):
    v, subsets = masked(tiny_classifier(family)), torch.arange(N).expand(2, 3, -1) < size
    logits = v.logits(images(2), subsets)
    torch.testing.assert_close(logits, row_by_row(v, images(2), subsets).detach(), rtol=0, atol=1e-5)
    assert len(packed_calls) == 1


def test_packing_equals_dropping_in_the_real_classifier(imagenette_classifier, imagenette_images, packed_calls):
    v, pixel_values = MaskedClassifier.from_pretrained(imagenette_classifier), imagenette_images[0][:2]
    subsets = random_subsets(2, 6, num_patches=64)
    subsets[0, 0], subsets[1, 0] = False, True
    logits = v.logits(pixel_values, subsets)
    assert packed_calls
    torch.testing.assert_close(logits, row_by_row(v, pixel_values, subsets).detach(), rtol=0, atol=1e-5)


def test_gradients_are_those_of_dropping(tiny_classifier, images, packed_calls):
    v, pixel_values, subsets = masked(tiny_classifier().requires_grad_(True)), images(2), random_subsets(2, 7)
    weights = torch.randn(2, 7, 3, generator=torch.Generator().manual_seed(0))
    gradients = []
    for answer in (v, lambda *inputs: row_by_row(v, *inputs)):
        v.zero_grad()
        (answer(pixel_values, subsets) * weights).sum().backward()
        gradients.append([p.grad.clone() for p in v.parameters() if p.grad is not None])
    assert len(packed_calls) == 1
    for packed, literal in zip(*gradients, strict=True):
        torch.testing.assert_close(packed, literal, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunk_size", [1, 7, 40, 100])
def test_no_packed_forward_holds_more_tokens_than_chunk_size(tiny_classifier, images, packed_calls, chunk_size):
    v, subsets = masked(tiny_classifier(), chunk_size=chunk_size), random_subsets(3, 11)
    logits = v.logits(images(3), subsets)
    assert sum(map(len, packed_calls)) == 33
    assert sum(map(sum, packed_calls)) == subsets.sum() + 33
    assert all(sum(lengths) <= chunk_size or len(lengths) == 1 for lengths in packed_calls)
    # A row more would not have fitted.
    assert all(sum(a) + b[0] > chunk_size for a, b in itertools.pairwise(packed_calls))
    torch.testing.assert_close(logits, masked(v.classifier).logits(images(3), subsets), rtol=0, atol=1e-5)


@pytest.mark.parametrize("with_kernel", [False, True])
def test_attention_is_bounded_by_the_rows(with_kernel):
    """Against attention row by row, without a kernel and with one that has `varlen_attn`'s arguments."""
    generator, lengths = torch.Generator().manual_seed(0), torch.tensor([1, 2, 2, 2, 5])
    query, key, value = torch.randn(3, 12, 2, 8, generator=generator)
    expected = torch.empty(12, 2, 8)
    for start, end in ((0, 1), (1, 3), (3, 5), (5, 7), (7, 12)):
        for head in range(2):
            weights = (query[start:end, head] @ key[start:end, head].T * 8**-0.5).softmax(dim=-1)
            expected[start:end, head] = weights @ value[start:end, head]

    def kernel(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k):
        assert (cu_seq_q.dtype, max_q, max_k) == (torch.int32, 5, 5)
        assert cu_seq_q.tolist() == cu_seq_k.tolist() == [0, 1, 3, 5, 7, 12]
        return expected.clone()

    rows = PackedRows(lengths, 1, torch.device("cpu"))
    attended = rows.attention(query, key, value, 8**-0.5, kernel if with_kernel else None)
    torch.testing.assert_close(attended, expected)
    assert rows.num_attentions == 1


def test_the_kernel_is_called_as_torch_declares_it():
    varlen = pytest.importorskip("torch.nn.attention.varlen")
    names = list(inspect.signature(varlen.varlen_attn).parameters)
    assert names[:7] == ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]


def test_queries_on_a_cpu_have_no_kernel():
    assert not packing._has_kernel(torch.zeros(3, 2, 16, dtype=torch.bfloat16), 16**-0.5)


# Classifiers whose parts may look at rows are not packed, and answer right


class HeadOnMaximum(Dinov2ForImageClassification):
    """A classifier with code of its own: its head reads more of the patches than their mean."""

    def forward(self, pixel_values=None, **kwargs):
        states = self.base_model(pixel_values).last_hidden_state
        features = torch.cat([states[:, 0], states[:, 1:].amax(dim=1)], dim=1)
        return ImageClassifierOutput(logits=self.classifier(features))


class ScaledByRow(nn.Linear):
    """A layer that looks at whole rows: it subtracts the mean of the row."""

    def forward(self, states):
        states = super().forward(states)
        return states - states.mean(dim=1, keepdim=True)


def with_own_head(classifier):
    classifier.__class__ = HeadOnMaximum


def with_own_layer(classifier):
    layer = FAMILIES[classifier.config.model_type].block_list(classifier)[0].mlp.fc2
    layer.__class__ = ScaledByRow


def with_own_forward(classifier):
    block = FAMILIES[classifier.config.model_type].block_list(classifier)[1]
    plain = type(block).forward

    def forward(self, states, *args, **kwargs):
        return plain(self, states, *args, **kwargs) - states.mean(dim=1, keepdim=True)

    block.forward = types.MethodType(forward, block)


def with_hook(classifier):
    block = FAMILIES[classifier.config.model_type].block_list(classifier)[0]
    block.register_forward_hook(lambda _, __, states: states - states.mean(dim=1, keepdim=True))


def minus_row_mean(_, __, states):
    return states - states.mean(dim=1, keepdim=True)


def with_hook_on_encoder(classifier):
    classifier.base_model.encoder.register_forward_hook(
        lambda _, __, output: type(output)(last_hidden_state=minus_row_mean(None, None, output.last_hidden_state))
    )


def with_hook_on_last_norm(classifier):
    classifier.base_model.layernorm.register_forward_hook(minus_row_mean)


class NormOfRows(nn.LayerNorm):
    """A norm that looks at whole rows."""

    def forward(self, states):
        return minus_row_mean(None, None, super().forward(states))


def with_own_last_norm(classifier):
    classifier.base_model.layernorm.__class__ = NormOfRows


def with_softmax_over_rows(classifier):
    block = FAMILIES[classifier.config.model_type].block_list(classifier)[0]
    block.mlp = nn.Sequential(block.mlp, nn.Softmax(dim=1)).eval()


def with_attention_of_its_own(classifier):
    def sharp(module, query, key, value, attention_mask, scaling=None, **kwargs):
        weights = (3 * scaling * query @ key.transpose(-1, -2)).softmax(dim=-1)
        return (weights @ value).transpose(1, 2).contiguous(), weights

    AttentionInterface.register("sharp", sharp)
    classifier.set_attn_implementation("sharp")


def with_causal_attention(classifier):
    for block in FAMILIES[classifier.config.model_type].block_list(classifier):
        block.attention.is_causal = True


CHANGES = [
    with_own_head,
    with_own_layer,
    with_own_forward,
    with_hook,
    with_hook_on_encoder,
    with_hook_on_last_norm,
    with_own_last_norm,
    with_softmax_over_rows,
    with_attention_of_its_own,
    with_causal_attention,
]


@pytest.mark.parametrize("change", CHANGES)
def test_parts_that_look_at_rows_see_the_rows(tiny_classifier, images, packed_calls, change):
    """Against each row alone, which is the only one that such a part can see."""
    v, pixel_values, subsets = masked(tiny_classifier()), images(2), random_subsets(2, 9)
    subsets[..., 0] = True
    plain = v.logits(pixel_values, subsets)
    assert len(packed_calls) == 1
    change(v.classifier)
    assert not can_be_packed(v.classifier)
    logits = v.logits(pixel_values, subsets)
    assert not torch.allclose(plain, logits, atol=1e-3), "the change has no effect"
    torch.testing.assert_close(logits, row_by_row(v, pixel_values, subsets).detach(), rtol=0, atol=1e-5)
    assert len(packed_calls) == 1


def test_a_class_that_is_given_another_forward_is_not_packed(tiny_classifier, monkeypatch):
    classifier = tiny_classifier()
    assert can_be_packed(classifier)
    mlp = type(FAMILIES["dinov2"].block_list(classifier)[0].mlp)
    monkeypatch.setattr(mlp, "forward", lambda self, states: states - states.mean(dim=1, keepdim=True))
    assert not can_be_packed(classifier)


def test_a_single_block_in_training_mode_is_not_packed(tiny_classifier):
    """As for dropout at test time, which draws attention weights per row."""
    classifier = tiny_classifier()
    FAMILIES["dinov2"].block_list(classifier)[1].train()
    assert not can_be_packed(classifier)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_autocast_is_left_on_only_where_weights_are_of_another_type(tiny_classifier, images, monkeypatch, precision):
    """Weights that are half precision already need none; float32 ones are cast by the autocast around the call."""
    seen, attention = [], PackedRows.attention

    def spy(self, *inputs):
        seen.append(torch.is_autocast_enabled("cpu"))
        return attention(self, *inputs)

    monkeypatch.setattr(PackedRows, "attention", spy)
    v = MaskedClassifier(tiny_classifier(), mixed_precision=precision)
    with torch.autocast("cpu", torch.bfloat16):
        v.logits(images(1), random_subsets(1, 3))
    assert set(seen) == {precision == "no"}


def test_dropped_paths_are_drawn_per_row(tiny_classifier):
    classifier = tiny_classifier(drop_path_rate=0.5)
    assert can_be_packed(classifier)
    assert not can_be_packed(classifier.train())


def test_blocks_that_do_not_ask_for_the_packed_attention_are_an_error(tiny_classifier, images, monkeypatch):
    """As a version of transformers could do that reads the name of the attention elsewhere."""
    monkeypatch.setattr(packing, "with_attention", lambda model, name: model)
    with pytest.raises(RuntimeError, match="0 of 2 blocks"):
        masked(tiny_classifier()).logits(images(1), random_subsets(1, 3))


def test_the_classifier_keeps_its_own_attention(tiny_classifier, images):
    classifier = tiny_classifier()
    before = classifier.config._attn_implementation
    masked(classifier).logits(images(1), random_subsets(1, 3))
    assert classifier.config._attn_implementation == before
    assert {module.config._attn_implementation for module in classifier.modules() if hasattr(module, "config")} == {
        before
    }


@pytest.mark.parametrize(
    ("memory", "hidden_size", "tokens"),
    [(16 << 30, 384, 43690), (139 << 30, 384, 262144), (80 << 30, 1024, 81920), (2 << 30, 768, 16384)],
)
def test_a_gpu_gets_as_many_tokens_as_a_sixteenth_of_its_memory_holds(monkeypatch, memory, hidden_size, tokens):
    properties = types.SimpleNamespace(total_memory=memory)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert tokens_that_fit(torch.device("cuda"), hidden_size) == tokens
    assert tokens_that_fit(torch.device("cpu"), hidden_size) == 4096
    assert tokens_that_fit(torch.device("cuda"), None) == 16384
