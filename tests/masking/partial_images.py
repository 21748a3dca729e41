"""What the tests of this folder share: tiny masked classifiers, random subsets, and a count of what a module sees."""

import torch

from salvage_hf.masking import MaskedClassifier

N = 16  # patches of 4 x 4 pixels in the tiny images


def masked(classifier, masking=None, **kwargs):
    return MaskedClassifier(classifier, masking=masking, patch_size=4, image_size=(16, 16), **kwargs)


def random_subsets(batch_size, num_subsets, num_patches=N, seed=0):
    generator = torch.Generator().manual_seed(seed)
    density = torch.rand(batch_size, num_subsets, 1, generator=generator)
    return torch.rand(batch_size, num_subsets, num_patches, generator=generator) < density


class TokenCounter:
    """Counts what reaches a module: rows * tokens of every call."""

    def __init__(self, module):
        self.calls = []
        module.register_forward_pre_hook(lambda _, args: self.calls.append(args[0].shape[:2]))

    @property
    def tokens(self):
        return sum(rows * length for rows, length in self.calls)
