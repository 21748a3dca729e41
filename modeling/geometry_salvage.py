"""What an image processor does to a picture, and where the pixels that a model sees lie in the original.

An image processor may resize, crop and pad in any order and by rules of its own. Its settings do not say where a pixel
comes from, so it is asked: it processes pictures whose grey values are coordinates, and what comes out is read back.
"""

import functools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image as PILImage

#: left, top, right, bottom in pixels of a picture, whose own borders are 0, 0, width, height
Box = tuple[float, float, float, float]


class Geometry(NamedTuple):
    """Where a processed picture lies in its original.

    Attributes:
        box: the borders of the processed picture, beyond those of the original where a processor pads. In between, both
            axes have one scale each.
        seen: the part of the original that the processed picture shows. The rest of the box is padding, also where it
            lies in the original: a processor may crop and then pad.
    """

    box: Box
    seen: Box

    def scaled(self, x: float, y: float) -> "Geometry":
        """The same in a copy of the picture that is x times as wide and y times as high."""
        box, seen = ((left * x, top * y, right * x, bottom * y) for left, top, right, bottom in self)
        return Geometry(box, seen)

    def shown(self, region: np.ndarray, height: int, width: int) -> np.ndarray:
        """A region of the original as the processed picture shows it; there is none in the padding.

        Args:
            region: bool [H, W], in pixels of the original.
            height, width: those of the processed picture.

        Returns:
            bool [height, width]: what the region is at the centre of each processed pixel.
        """
        places: list[np.ndarray] = []
        inside: list[np.ndarray] = []
        for axis, count in ((1, height), (0, width)):
            start, end = self.box[axis], self.box[axis + 2]
            centres = start + (np.arange(count) + 0.5) * (end - start) / count
            inside.append((centres >= self.seen[axis]) & (centres < self.seen[axis + 2]))
            places.append(np.floor(centres).astype(int).clip(0, region.shape[1 - axis] - 1))
        return region[np.ix_(*places)] & inside[0][:, None] & inside[1]

    def placed(self, maps: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Maps of what the model sees, on the pixels of the original.

        Args:
            maps: [T, rows, columns], with a value per patch.
            height, width: those of the original.

        Returns:
            float32 [T, height, width]: interpolated between the centres of the patches, and NaN where the model sees
            nothing of the original.
        """
        left, top, right, bottom = (round(edge) for edge in self.box)
        size = max(1, bottom - top), max(1, right - left)  # the box of a thin picture may be less than a pixel wide
        values = torch.nn.functional.interpolate(maps[None].float(), size, mode="bilinear", antialias=True)[0]
        rows = slice(max(top, 0), max(min(top + size[0], height), 0))
        columns = slice(max(left, 0), max(min(left + size[1], width), 0))
        values = values[:, rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        placed = values.new_full((len(maps), height, width), torch.nan)
        placed[:, rows, columns] = values
        x = torch.arange(width, device=maps.device) + 0.5
        y = torch.arange(height, device=maps.device)[:, None] + 0.5
        is_seen = (x > self.seen[0]) & (x < self.seen[2]) & (y > self.seen[1]) & (y < self.seen[3])
        return placed.masked_fill(~is_seen, torch.nan)


def process(processor, pictures: Iterable[PILImage.Image], **options: Any) -> torch.Tensor:
    """The pixel values of pictures, as a model takes them.

    A processor whose `image_mean` has one number belongs to a model of one channel, which gets grey pictures.

    Args:
        processor: an image processor of transformers.
        pictures: RGB pictures; only one of them is in memory at a time if this is a generator.
        options: in place of the processor's own, for example `do_normalize=False`.

    Returns:
        float32 [B, C, H, W], if the processor gives all pictures the same size.

    Raises:
        ValueError: where the processor fails, or gives pixel values that are NaN or infinite (a standard deviation of 0
            does).
    """
    mean, std = getattr(processor, "image_mean", None), getattr(processor, "image_std", None)
    mode = "L" if isinstance(mean, (list, tuple)) and len(mean) == 1 else "RGB"
    if mode == "L" and getattr(processor, "do_convert_rgb", False):
        options["do_convert_rgb"] = False
    name = type(processor).__name__
    processed: list[torch.Tensor] = []
    for picture in pictures:
        given = picture if picture.mode == mode else picture.convert(mode)
        try:
            with np.errstate(all="ignore"):  # what is not finite is refused below
                pixels = processor(given, return_tensors="pt", **options)["pixel_values"].float()
        except Exception as error:  # a wrong setting may raise anything
            raise ValueError(f"the image processor {name} fails: {type(error).__name__}: {error}") from error
        if pixels.ndim != 4 or len(pixels) != 1:
            raise ValueError(f"the image processor {name} gives {list(pixels.shape)} for an image, not [1, C, H, W]")
        if not pixels.isfinite().all():
            raise ValueError(
                f"the image processor {name} gives pixel values that are NaN or infinite: check its image_std {std} "
                f"and its rescale_factor {getattr(processor, 'rescale_factor', None)}"
            )
        processed.append(pixels)
    return torch.cat(processed)


def picture_geometry(processor, width: int, height: int) -> Geometry:
    """Where in a picture of width x height pixels an image processor finds the pixels that it shows the model.

    It is measured, to one pixel of the original or of the processed picture, whichever is the larger. The processor
    runs on ten pictures of this size; what was measured before is known from the settings of the processor.

    Args:
        processor: an image processor of transformers.
        width, height: of the upright picture.

    Raises:
        ValueError: where the processor fails, does more than resize, crop and pad, or shows the picture in a single row
            or column, in which no place can be told.
    """
    return _measured(_Settings(type(processor), processor.to_json_string(), processor), width, height)


def placed_on_pictures(
    attributions: torch.Tensor, classes: torch.Tensor, target_sizes, processor, patch_size: int
) -> list[torch.Tensor]:
    """Maps of what an image processor makes of B pictures, on the pictures' pixels.

    Args:
        attributions: [B, N, K].
        classes: int64 [B, T], the classes whose maps are placed.
        target_sizes: (height, width) of the B pictures.
        processor: the image processor.
        patch_size: the side of a patch in pixels of what it makes.

    Returns:
        Of each picture, [T, height, width] as `Geometry.placed` returns it.

    Raises:
        ValueError: where sizes or classes are none, or the processor makes no N patches of a picture of this size.
    """
    batch_size, num_patches, num_classes = attributions.shape
    sizes = target_sizes.tolist() if hasattr(target_sizes, "tolist") else target_sizes
    if not isinstance(sizes, (list, tuple)) or len(sizes) != batch_size or not all(map(_is_size, sizes)):
        raise ValueError(f"target_sizes must be the (height, width) of {batch_size} pictures, got {str(sizes)[:80]}")
    is_batch = isinstance(classes, torch.Tensor) and classes.dtype == torch.int64 and classes.ndim == 2
    if not is_batch or len(classes) != batch_size or not ((classes >= 0) & (classes < num_classes)).all():
        raise ValueError(
            f"classes must be an int64 tensor [{batch_size}, T] of 0..{num_classes - 1}, got "
            f"{str(classes.tolist())[:80] if is_batch else type(classes).__name__}"
        )
    maps = attributions.transpose(1, 2).gather(1, classes[..., None].expand(-1, -1, num_patches))  # [B, T, N]
    placed = []
    for values, (height, width) in zip(maps, sizes, strict=True):
        shape = process(processor, [PILImage.new("RGB", (width, height))]).shape[-2:]
        rows, columns = (side // patch_size for side in shape)
        if rows * columns != num_patches:
            raise ValueError(
                f"image_processor makes {rows} x {columns} patches of a picture of {width} x {height} pixels, but "
                f"there are values of {num_patches}: give the one that made the model's pixel_values"
            )
        geometry = picture_geometry(processor, width, height)
        placed.append(geometry.placed(values.unflatten(-1, (rows, columns)), height, width))
    return placed


def _is_size(size) -> bool:
    """Whether something is the height and the width of a picture."""
    is_pair = isinstance(size, (list, tuple)) and len(size) == 2
    return is_pair and all(isinstance(side, int) and not isinstance(side, bool) and side >= 1 for side in size)


@dataclass(frozen=True)
class _Settings:
    """A processor, which is the same as another one of its class with the same settings.

    Classes count because LeViT's, for example, enlarges what the same settings mean to others.
    """

    kind: type
    settings: str
    processor: Any = field(compare=False)


@functools.lru_cache(maxsize=100_000)  # of a kilobyte each
def _measured(settings: _Settings, width: int, height: int) -> Geometry:
    probe = _Probe(settings.processor, width, height)
    (left, right), (seen_left, seen_right) = probe.measured(axis=0)
    (top, bottom), (seen_top, seen_bottom) = probe.measured(axis=1)
    return Geometry((left, top, right, bottom), (seen_left, seen_top, seen_right, seen_bottom))


#: The first and last border of something along an axis, in pixels of the original.
_Span = tuple[float, float]


class _Probe:
    """An image processor at work on grey pictures of one size.

    A processor computes the same linear function of all grey pictures: black and white ones tell what it does to
    values, and where it pads.
    """

    def __init__(self, processor, width: int, height: int):
        self.processor, self.size = processor, (width, height)
        self.name = type(processor).__name__
        self.shape: tuple[int, ...] | None = None
        self.black = self.processed(np.zeros(1, np.uint8), axis=0)
        self.contrast = self.processed(np.full(1, 255, np.uint8), axis=0) - self.black
        largest = float(np.abs(self.contrast).max())
        if largest == 0:
            raise ValueError(f"the image processor {self.name} gives black and white pictures the same pixel values")
        # At the border to the padding, resampling mixes both.
        is_shown = np.abs(self.contrast) > 0.5 * largest
        rows, columns = (np.flatnonzero(is_shown.any(axis=axis)) for axis in (1, 0))
        self.rows, self.columns = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        if is_shown.sum() != is_shown[self.rows, self.columns].size:
            raise ValueError(self.message())

    def message(self) -> str:
        """Why the processor is refused."""
        return (
            f"the image processor {self.name} does more to a picture of {self.size[0]} x {self.size[1]} pixels than "
            "to resize, crop and pad it with one value, so that a map of what the model sees has no place in it"
        )

    def processed(self, levels: np.ndarray, axis: int) -> np.ndarray:
        """What becomes of a picture whose grey levels change along an axis, 0 for x and 1 for y: float32 [h, w].

        Raises:
            ValueError: where the processor fails, or the size depends on the values.
        """
        picture = np.broadcast_to(levels[:, None] if axis else levels, self.size[::-1])
        values = process(self.processor, [PILImage.fromarray(picture)])[0].mean(dim=0).numpy()
        self.shape = self.shape or values.shape
        if values.shape != self.shape:
            raise ValueError(self.message())
        return values

    def positions(self, axis: int, period: float, expected: np.ndarray) -> np.ndarray:
        """Where in the original each shown pixel lies, along an axis of which they are the rows: [rows, pixels].

        Two waves, a quarter of a period apart, are a point on a circle. Its angle is the place within a period, and
        stays so when resampling flattens both waves.

        Args:
            axis: 0 for x and 1 for y.
            period: of the waves, in pixels of the original.
            expected: where pixels lie at least to half a period, [pixels].
        """
        angles = 2 * np.pi * (np.arange(self.size[axis]) + 0.5) / period
        waves = []
        for wave in (np.cos(angles), np.sin(angles)):
            # Short of black and white, beyond which resampling would be cut off.
            values = self.processed((127.5 + 100 * wave).round().astype(np.uint8), axis) - self.black
            waves.append(values[self.rows, self.columns] / self.contrast[self.rows, self.columns] - 0.5)
        found = np.arctan2(waves[1], waves[0]) * (period / (2 * np.pi))
        if axis:
            found = found.T
        return expected + (found - expected + period / 2) % period - period / 2

    def measured(self, axis: int) -> tuple[_Span, _Span]:
        """The borders along an axis of the processed picture, and of what it shows of the original.

        Raises:
            ValueError: where the pixels do not lie in one line of the original.
        """
        length, count = self.size[axis], self.black.shape[1 - axis]
        shown = (self.columns, self.rows)[axis]
        pixels = np.arange(shown.start, shown.stop)
        if len(pixels) == 1 and length > 1:
            raise ValueError(
                f"the image processor {self.name} shows a picture of {self.size[0]} x {self.size[1]} pixels in a "
                f"single {'row' if axis else 'column'}, in which no place can be told"
            )
        # Once roughly, with a wave that does not repeat in the picture, then with shorter ones in what is shown. Waves
        # of less than 8 pixels of the original are no waves, and very long ones have too few levels in a pixel.
        period, expected, step = max(1.25 * length, 8.0), np.full(len(pixels), length / 2), np.inf
        for _ in range(2):
            positions = self.positions(axis, period, expected)
            start, step = _line(pixels, positions.mean(axis=0), length)
            expected = start + (pixels + 0.5) * step
            # Of 200 levels, a wave is off by half a level, and the border by half a pixel of a resize before the last.
            allowed = max(1.0, step, period / 100) + np.where(_is_inner(expected, length), 0, length / 64)
            if step <= 0 or not (np.abs(positions - expected) <= allowed).all():
                raise ValueError(self.message())
            period = max(8.0, min(len(pixels) / 4, 128) * step)
        end = start + count * step
        first, last = start + pixels[0] * step, start + (pixels[-1] + 1) * step
        # Without padding there is nothing beyond the picture, and where there is some, the picture ends before it.
        if pixels[0] == 0:
            start = max(start, 0.0)
        if pixels[-1] == count - 1:
            end = min(end, float(length))
        seen = 0.0 if first < step else first, float(length) if last > length - step else last
        return (start, end), seen


def _line(pixels: np.ndarray, positions: np.ndarray, length: int) -> tuple[float, float]:
    """The line through the positions of pixels: (that of the border of pixel 0, the step from pixel to pixel)."""
    if np.ptp(positions) < 0.01:  # all show the same pixel of the original
        step = 1 / len(pixels)
        return float(np.floor(positions[0]) - pixels[0] * step), step
    inner = _is_inner(positions, length)
    if not inner.any() or np.ptp(positions[inner]) < 0.3 * np.ptp(positions):
        inner[:] = True
    slope, at_zero = np.polyfit(pixels[inner] + 0.5, positions[inner], 1)
    return float(at_zero), float(slope)


def _is_inner(positions: np.ndarray, length: int) -> np.ndarray:
    """Which positions are apart from the borders, where resampling has pixels on one side only and moves positions."""
    margin = min(max(1.0, 2 * np.ptp(positions) / len(positions), length / 32), 0.3 * length)
    return (positions > margin) & (positions < length - margin)
