"""Feature maps of a classifier [B, D, rows, columns], and their way to the grid of patches that v(S) hides.

Where a vision transformer is one of `FAMILIES`, they are the patch tokens of its last block's first norm, laid out on
the grid: of the last block's output a head on CLS reads no patch. All other classifiers are searched once for each
batch, on one image of it: the maps are what the last layer gives that still has a place for more than one part of the
image, and through whose output alone the logits see the image. For CNNs that is the last stage or the activation after
it, whatever they are called; for Swin and SigLIP it is the last norm, whose tokens are laid out on their grid.

Feature maps are hardly ever as fine as the patches of v(S). A map is interpolated linearly (`on_patches`).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

from ..masking import MaskedClassifier
from ..masking.strategies import as_two_sides
from ..vision_families import TOKEN_STRIDES, image_logits, with_output_hook, with_submodule


class FeatureGrid(nn.Module):
    """Replaces a layer, and passes what it gives through `view`, as D maps, for hooks to read or to exchange.

    Args:
        layer: a layer that gives maps [B, D, rows, columns] or tokens [B, P + rows * columns, D].
        num_prefix: P.
        grid_size: (rows, columns) of tokens; None where the layer gives maps.
    """

    def __init__(self, layer: nn.Module, num_prefix: int = 0, grid_size: tuple[int, int] | None = None):
        super().__init__()
        self.layer, self.num_prefix, self.grid_size, self.view = layer, num_prefix, grid_size, nn.Identity()

    def forward(self, *args, **kwargs) -> torch.Tensor:
        """What the layer returns."""
        output = self.layer(*args, **kwargs)
        if self.grid_size is None:
            return self.view(output)
        prefix, patches = output[:, : self.num_prefix], output[:, self.num_prefix :]
        maps = self.view(patches.transpose(1, 2).unflatten(2, self.grid_size))  # [B, D, rows, columns]
        # Maps that were exchanged may be more than the images: `ablationcam` asks about many versions of one image.
        return torch.cat([prefix.expand(len(maps), -1, -1), maps.flatten(2).transpose(1, 2)], dim=1)


def model_with_feature_grid(
    classifier: MaskedClassifier, pixel_values: torch.Tensor
) -> tuple[PreTrainedModel, FeatureGrid]:
    """A view of the classifier with a `FeatureGrid` for the layer whose maps explain it, and this grid.

    It is made for every call, because what is exchanged in the classifier does not reach an older view.

    Raises:
        ValueError: where the classifier has no such layer.
    """
    model, family = classifier.classifier, classifier.family
    if family is None:
        path, grid_size = _last_layer_with_places(model, pixel_values[:1])
        grid = FeatureGrid(model.get_submodule(path), 0, grid_size)
    else:
        blocks = family.block_list(model)
        path = f"{family.blocks_path(model)}.{len(blocks) - 1}.{family.norms[0]}"
        height, width = as_two_sides("patch_size", model.config.patch_size)
        grid_size = pixel_values.shape[-2] // height, pixel_values.shape[-1] // width
        grid = FeatureGrid(model.get_submodule(path), family.num_prefix_tokens(model.config), grid_size)
    return with_submodule(model, path, grid), grid


def check_feature_maps(classifier: MaskedClassifier) -> None:
    """Raises ValueError where a classifier has no feature maps.

    This is for methods to refuse it when they are loaded, and not at the first image; where the classifier does not
    state an image size, only that remains.
    """
    if classifier.family is None and classifier.image_size is not None:
        with torch.inference_mode(False):  # whose tensors have no gradients
            blank = torch.zeros(1, getattr(classifier.config, "num_channels", 3), *classifier.image_size)
            model_with_feature_grid(classifier, blank.to(classifier.device, classifier.classifier.dtype))


def features_of(
    model: PreTrainedModel, grid: FeatureGrid, pixel_values: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Feature maps [B, D, rows, columns] and logits [B, K] of one forward."""
    seen = []
    handle = grid.view.register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        logits = image_logits(model, pixel_values)
    finally:
        handle.remove()
    return seen[0], logits


@contextmanager
def exchanged(grid: FeatureGrid, maps: torch.Tensor) -> Iterator[None]:
    """Within it the grid's layer gives these maps [R, D, rows, columns], whatever the image."""
    handle = grid.view.register_forward_hook(lambda module, inputs, output: maps)
    try:
        yield
    finally:
        handle.remove()


def on_patches(maps: torch.Tensor, grid_size: tuple[int, int]) -> torch.Tensor:
    """A map on the places of the features, brought to the grid of patches: [B, rows', columns'] -> [B, N].

    Both grids are taken to cover the whole image. The map is interpolated linearly where it is coarser; where it is
    finer, a patch has the mean of the places around its middle, which weigh the less the farther they are
    (antialiasing). A map on the same grid stays as it is.
    """
    return nn.functional.interpolate(maps[:, None], size=grid_size, mode="bilinear", antialias=True).flatten(1)


def _last_layer_with_places(model: PreTrainedModel, pixel_values: torch.Tensor) -> tuple[str, tuple[int, int] | None]:
    """The path of the layer that gives the feature maps, and the grid of its tokens, None where it gives maps.

    Args:
        model: the classifier.
        pixel_values: one image, [1, C, H, W].

    Raises:
        ValueError: where there is none: what comes last are tokens of which nobody has stated where they lie, or maps
            of another shape than the image, or some of the image goes around every layer.
    """
    kind, (height, width) = model.config.model_type, pixel_values.shape[-2:]
    for path, shape in reversed(_outputs_with_places(model, pixel_values)):
        if len(shape) == 3 and kind not in TOKEN_STRIDES:
            raise ValueError(
                f"the last layers of a {kind} model give tokens, not maps, and where these lie on the image is stated "
                f"for {', '.join(TOKEN_STRIDES)} only"
            )
        # Of an image that is a single place by then, a layer that pads it makes no more.
        if isinstance(model.get_submodule(path), nn.ZeroPad2d) or not _is_the_only_way(model, path, pixel_values):
            continue
        if len(shape) == 3:
            stride = TOKEN_STRIDES[kind](model.config)
            grid_size = -(-height // stride), -(-width // stride)  # an incomplete place at the border is filled up
            if grid_size[0] * grid_size[1] == shape[1]:
                return path, grid_size
        elif abs(shape[2] * width - shape[3] * height) <= max(height, width):  # borders make a place more or less
            return path, None
        raise ValueError(
            f"{path} of this {kind} model gives {list(shape)} for an image of {height} x {width} pixels, which is not "
            "laid out as the image is: [B, channels, rows, columns]"
        )
    raise ValueError(
        f"this {kind} model has no layer with a map of features through which all that it sees of an image of {height} "
        f"x {width} pixels passes"
    )


def _outputs_with_places(model: PreTrainedModel, pixel_values: torch.Tensor) -> list[tuple[str, torch.Size]]:
    """Path and shape of the output of each layer that gives maps or tokens with more than one place, as they come."""
    seen: list[tuple[str, torch.Size]] = []

    def note(path: str, output: object) -> None:
        if isinstance(output, torch.Tensor) and output.ndim in (3, 4):
            num_places = output.shape[1] if output.ndim == 3 else output.shape[2:].numel()
            # [1, D, 1] are pooled features, not D tokens with one channel.
            if num_places > 1 and not (output.ndim == 3 and output.shape[2] == 1):
                seen.append((path, output.shape))

    with torch.no_grad():
        image_logits(with_output_hook(model, note), pixel_values)
    return seen


def _is_the_only_way(model: PreTrainedModel, path: str, pixel_values: torch.Tensor) -> bool:
    """Whether the logits see the image only through this layer's output: cut there, they have no gradient."""
    grid = FeatureGrid(model.get_submodule(path))
    grid.view.register_forward_hook(lambda module, inputs, output: output.detach())
    pixel_values = pixel_values.detach().requires_grad_()
    with torch.enable_grad():
        logits = image_logits(with_submodule(model, path, grid), pixel_values)
        if not logits.requires_grad:
            return True
        return torch.autograd.grad(logits.sum(), pixel_values, allow_unused=True)[0] is None
