"""Feature maps of a vision transformer: the patch tokens of its last block's first norm, laid out on the grid."""

import torch
from torch import nn
from transformers import PreTrainedModel

from ..masking import MaskedClassifier
from ..vision_families import with_submodule


class FeatureGrid(nn.Module):
    """Replaces a norm, and lays its patch tokens out as D maps on the grid: the output of `view`, for hooks to read."""

    def __init__(self, norm: nn.Module, num_prefix: int, grid_size: tuple[int, int]):
        super().__init__()
        self.norm, self.num_prefix, self.grid_size, self.view = norm, num_prefix, grid_size, nn.Identity()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """What the norm returns, [B, P + N, D]."""
        tokens = self.norm(hidden_states)
        prefix, patches = tokens[:, : self.num_prefix], tokens[:, self.num_prefix :]
        maps = self.view(patches.transpose(1, 2).unflatten(2, self.grid_size))  # [B, D, rows, columns]
        return torch.cat([prefix, maps.flatten(2).transpose(1, 2)], dim=1)


def model_with_feature_grid(
    classifier: MaskedClassifier, pixel_values: torch.Tensor
) -> tuple[PreTrainedModel, FeatureGrid]:
    """A view of the classifier with a `FeatureGrid` for the first norm of its last block, and this grid.

    It is made for every call, because what is exchanged in the classifier does not reach an older view.
    """
    model, family = classifier.classifier, classifier.token_family()
    blocks, name = family.block_list(model), family.norms[0]
    grid = FeatureGrid(
        blocks[-1].get_submodule(name), classifier.num_prefix_tokens, classifier.patch_grid(pixel_values)
    )
    return with_submodule(model, f"{family.blocks_path(model)}.{len(blocks) - 1}.{name}", grid), grid


def features_of(model: nn.Module, grid: FeatureGrid, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Feature maps [B, D, rows, columns] and logits [B, K] of one forward."""
    seen = []
    handle = grid.view.register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        logits = model(pixel_values).logits
    finally:
        handle.remove()
    return seen[0], logits
