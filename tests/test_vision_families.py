"""The facts about families of vision transformers, compared with transformers' own modules."""

import pytest
import torch
from torch import nn

from salvage_hf.vision_families import FAMILIES, freeze_mask_token, on_tokens, with_output_hook, with_submodule

VARIANTS = [*FAMILIES, "deit_teacher"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_blocks_and_norms_are_where_the_family_says(tiny_classifier, images, variant):
    """A forward passes the blocks in order, and each block's two norms and scales."""
    classifier = tiny_classifier(variant)
    family = FAMILIES[classifier.config.model_type]
    blocks, passed = family.block_list(classifier), []
    assert len(blocks) == classifier.config.num_hidden_layers
    expected = []
    for number, block in enumerate(blocks):
        for name in (
            family.norms[0],
            *(family.layer_scales or ())[:1],
            family.norms[1],
            *(family.layer_scales or ())[1:],
        ):
            expected.append((number, name))
            block.get_submodule(name).register_forward_hook(
                lambda *_, number=number, name=name: passed.append((number, name))
            )
    with torch.no_grad():
        classifier(images(1))
    assert passed == expected


@pytest.mark.parametrize("variant", VARIANTS)
def test_prefix_tokens_and_heads_make_the_logits(tiny_classifier, images, variant):
    classifier = tiny_classifier(variant)
    family = FAMILIES[classifier.config.model_type]
    with torch.no_grad():
        tokens = classifier.base_model(images(2)).last_hidden_state
        num_prefix = family.num_prefix_tokens(classifier.config)
        assert tokens.shape[1] == num_prefix + 16
        logits = []
        for head, place in family.heads(classifier):
            features = tokens[:, place]
            if family.pools_patches:
                features = torch.cat([features, tokens[:, num_prefix:].mean(dim=1)], dim=1)
            logits.append(head(features))
        torch.testing.assert_close(torch.stack(logits).mean(dim=0), classifier(images(2)).logits)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_view_on_tokens_answers_like_the_classifier_on_pixels(tiny_classifier, images, variant):
    classifier = tiny_classifier(variant)
    with torch.no_grad():
        tokens = classifier.base_model.embeddings(images(2))
        torch.testing.assert_close(on_tokens(classifier)(tokens).logits, classifier(images(2)).logits)


def test_a_view_with_another_submodule_leaves_the_module_as_it_was():
    module = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Linear(2, 2))
    other = nn.Linear(2, 2)
    view = with_submodule(module, "0.0", other)
    assert view[0][0] is other
    assert module[0][0] is not other
    assert view[1] is module[1]
    x = torch.randn(3, 2)
    torch.testing.assert_close(view(x), module[1](other(x).relu()))


def test_output_hooks_reach_every_part_of_the_view_and_none_of_the_module(tiny_classifier, images):
    classifier, seen = tiny_classifier("vit"), []
    view = with_output_hook(classifier, lambda path, output: seen.append(path))
    view(images(1))
    assert {path for path, part in view.named_modules() if not list(part.children())} <= {*seen} | {
        path for path, part in view.named_modules() if part._forward_hooks
    }
    assert not any(part._forward_hooks for part in classifier.modules())
    told = len(seen)
    classifier(images(1))
    assert len(seen) == told > 10


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_unused_mask_token_is_taken_out_of_training(tiny_classifier, variant):
    classifier = tiny_classifier(variant)
    freeze_mask_token(classifier.base_model)
    frozen = [name for name, parameter in classifier.named_parameters() if not parameter.requires_grad]
    family = FAMILIES[classifier.config.model_type]
    assert len(frozen) == int(family.mask_token(classifier.config))
    assert all(name.endswith("mask_token") for name in frozen)
