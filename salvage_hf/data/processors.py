"""What an image processor does to a picture: the size of its pixel values, their colours, and how to undo it."""

import torch
from PIL import Image as PILImage

from ..modeling import process


def processed_size(processor) -> tuple[int, int] | None:
    """(height, width) of the images that an image processor returns; None where it depends on the image."""
    wide, tall = (process(processor, [PILImage.new("RGB", size)]) for size in ((96, 64), (64, 96)))
    return (wide.shape[-2], wide.shape[-1]) if wide.shape == tall.shape else None


def to_pictures(pixel_values: torch.Tensor, processor) -> torch.Tensor:
    """What a model sees, as pictures: [B, C, H, W] -> uint8 [B, H, W, 3]. Undoes the processor's normalisation.

    Args:
        pixel_values: as `process` returns them, of one or three channels.
        processor: the image processor, which normalises every channel by itself.
    """
    black, white = process(processor, [PILImage.new("RGB", (64, 64), colour) for colour in ("black", "white")])
    contrast = (white - black).abs().mean(dim=0)
    inside = contrast > contrast.max() / 2  # outside there is padding
    black, white = (ends[:, inside].median(dim=1).values[:, None, None] for ends in (black, white))  # [C, 1, 1] each
    greys = (pixel_values.float().cpu() - black) / (white - black)
    return (255 * greys.clamp(0, 1)).round().byte().permute(0, 2, 3, 1).expand(-1, -1, -1, 3)


def channel_map(given, wanted) -> list[list[float]] | None:
    """What makes pixel values of one image processor from those of another.

    Both are asked what they do to colours, because their settings do not say it: some also exchange channels.

    Args:
        given: the image processor whose pixel values there are, of C channels.
        wanted: the one whose pixel values are to be made, of C' channels.

    Returns:
        C' rows of a factor for each of the C channels, and of what is added to their sum; None where both processors
        give colours the same pixel values.

    Raises:
        ValueError: where `given` gives different colours the same pixel values.
    """
    (ours, our_black), (theirs, their_black) = _colours(given), _colours(wanted)
    if len(ours) == 1:  # such a processor gets grey pictures, whose three colours are equal
        inverse = ours.new_ones(3, 1) / ours.sum()
    elif len(ours) == 3 and torch.linalg.matrix_rank(ours, rtol=1e-3) == 3:
        inverse = torch.linalg.inv(ours)
    else:
        raise ValueError(
            f"the image processor {type(given).__name__} gives {len(ours)} channels that do not tell all colours "
            "apart, so that no other pixel values can be made of them"
        )
    factors = theirs @ inverse  # [C', C]
    found = torch.cat([factors, (their_black - factors @ our_black)[:, None]], dim=1)
    if len(ours) == len(theirs) and torch.allclose(found, torch.eye(*found.shape, dtype=found.dtype), atol=1e-4):
        return None
    return found.round(decimals=7).tolist()


def _colours(processor) -> tuple[torch.Tensor, torch.Tensor]:
    """What a processor adds for a picture's red, green and blue, float64 [C, 3], to what it gives black ones, [C]."""
    names = ("black", "white", "red", "lime", "blue")  # lime is pure green
    values = process(processor, [PILImage.new("RGB", (64, 64), name) for name in names]).double().flatten(2)
    contrast = (values[1] - values[0]).abs().mean(dim=0)
    black, _white, *colours = values[:, :, contrast > contrast.max() / 2].median(dim=2).values  # [C] each, no padding
    return torch.stack(colours, dim=1) - black[:, None], black
