"""Opens image files: those formats, sizes and ranges of values that are read safely and without doubt."""

import re
import reprlib
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, ImageOps, UnidentifiedImageError
from PIL import Image as PILImage

PILImage.init()
#: What Pillow may read. Of its other formats, EPS starts a program (Ghostscript), and some take any file for an image.
#: An older Pillow lacks some of these.
FORMATS = tuple(
    name for name in ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "AVIF", "JPEG2000") if name in PILImage.OPEN
)

#: An image has at most this many pixels, which take 360 MB. From here on, Pillow warns of a decompression bomb.
MAX_PIXELS = 89_478_485

#: An image's longer side is at most this many times its shorter one. A processor that scales the shorter side to 224
#: pixels would make gigabytes of a file that is a single pixel wide.
MAX_ASPECT_RATIO = 50

#: Where the values of an image with 16 bits per channel end below this, its real range is unknown. Files of 16 bits
#: often hold values of 12 bits, and their picture would be almost black.
LEAST_16_BIT_MAXIMUM = 4096

#: Pillow's modes for more than 8 bits per pixel
DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "F")


def open_image(
    image: dict[str, Any] | str | Path | PILImage.Image,
    pixel_range: Sequence[float] | None = None,
    name: str | None = None,
) -> PILImage.Image:
    """An RGB picture, upright, from an undecoded value of a `datasets` image column, a file, or a picture of Pillow.

    Args:
        image: a file, a dict with "bytes" or "path", or a picture.
        pixel_range: (low, high), the values that become black and white in images of more than 8 bits per channel,
            such as 12-bit or floating-point medical images. None means 0 to 65535, and refuses images that cannot be
            meant so.
        name: the image in the message of an error, its path by default.

    Raises:
        ValueError: where the image cannot be read, or not without doubt.
    """
    check_pixel_range(pixel_range)
    try:
        return _read(image, pixel_range)
    except Exception as error:  # Pillow raises many types of error
        path = None if isinstance(image, PILImage.Image) else image["path"] if isinstance(image, dict) else image
        shown = f"image '{printable(name or path)}'" if name or path else "the image"
        raise ValueError(f"{shown} cannot be read: {reason_of(error)}") from error


def why_unreadable(image: dict[str, Any] | str | Path, pixel_range: Sequence[float] | None = None) -> str:
    """Why an image cannot be read, in words; "" where it can. The arguments are those of `open_image`."""
    try:
        _read(image, pixel_range)
    except Exception as error:  # Pillow raises many types of error
        return reason_of(error)
    return ""


def check_pixel_range(pixel_range: Sequence[float] | None) -> None:
    """Raises ValueError where a range of pixels is not two finite numbers, the smaller one first."""
    if pixel_range is None:
        return
    is_range = isinstance(pixel_range, (list, tuple)) and len(pixel_range) == 2
    is_range = is_range and all(isinstance(end, (int, float)) and np.isfinite(float(end)) for end in pixel_range)
    if not is_range or not pixel_range[0] < pixel_range[1]:
        raise ValueError(f"pixel_range must be two numbers, the smaller one first, got {reprlib.repr(pixel_range)}")


def printable(path: Any) -> str:
    """A path whose bytes that are not UTF-8 are written as escapes, because Python cannot print them."""
    return str(path).encode(errors="surrogateescape").decode(errors="backslashreplace")


def _read(
    image: dict[str, Any] | str | Path | PILImage.Image | None, pixel_range: Sequence[float] | None
) -> PILImage.Image:
    if isinstance(image, PILImage.Image):
        _check_size(image)
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        picture, colour_of_16_bits = ImageOps.exif_transpose(image) if turned else image, False  # it copies any picture
    else:
        picture, colour_of_16_bits = decode(source_of(image))
    if picture.mode in DEEP_MODES:
        picture = _scaled(np.asarray(picture), pixel_range)
    rgb = picture if picture.mode == "RGB" else picture.convert("RGB")
    if colour_of_16_bits:
        if pixel_range is not None:
            raise ValueError(
                "of its 16 bits per channel 8 are read, and pixel_range cannot apply; convert it to 8 bits"
            )
        _check_maximum(256 * int(np.asarray(rgb).max()) + 255)  # Pillow has dropped the lower 8 bits
    return rgb


def source_of(image: dict[str, Any] | str | Path | None) -> str | Path | BytesIO:
    """What `decode` takes, from an undecoded value of a `datasets` image column, or from a file."""
    source: str | Path | BytesIO | None = None
    if isinstance(image, dict):
        source = image["path"] if image["bytes"] is None else BytesIO(image["bytes"])
    else:
        source = image
    if source is None:
        raise ValueError("the image is missing")
    return source


def decode(source: str | Path | BytesIO) -> tuple[PILImage.Image, bool]:
    """The first picture of a file, upright, in the file's own mode.

    Returns:
        The picture, and whether its file has 16 bits per channel of which Pillow has kept 8.
    """
    if isinstance(source, (str, Path)) and not Path(source).is_file():  # reading a pipe might never end
        raise ValueError("it is not a file" if Path(source).exists() else "the file does not exist")
    with PILImage.open(source, formats=FORMATS) as picture:
        _check_size(picture)
        of_16_bits = re.search(";16[BLN]", str(picture.tile)) is not None  # in which form pixels lie in the file
        picture.load()
        ImageOps.exif_transpose(picture, in_place=True)
    return picture, of_16_bits and picture.mode not in DEEP_MODES


def _check_size(picture: PILImage.Image) -> None:
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise ValueError(f"it has {width} x {height} pixels, more than {MAX_PIXELS:,}; scale it down")
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ValueError(
            f"it has {width} x {height} pixels: one side is more than {MAX_ASPECT_RATIO} times the other; crop it"
        )


def _scaled(values: np.ndarray, pixel_range: Sequence[float] | None) -> PILImage.Image:
    """A grey picture of 8 bits per pixel from values of any range, [H, W]."""
    least, largest = values.min(), values.max()
    if not np.isfinite([least, largest]).all():
        raise ValueError("its pixels are NaN or infinite")
    if pixel_range is None:
        if values.dtype.kind == "f" or least < 0 or largest > 65535:
            raise ValueError(
                f"its {'floating-point ' if values.dtype.kind == 'f' else ''}pixels lie between {least} and {largest}; "
                "images of 8 or 16 bits are needed, or the range of the values as pixel_range (LOW HIGH)"
            )
        if largest > 0:  # an image of zeros is black in any range
            _check_maximum(largest)
        pixel_range = (0, 65535)
    low, high = pixel_range
    greys = np.clip(values.astype(np.float32), low, high)
    greys -= low
    greys *= 255 / (high - low)
    return PILImage.fromarray(np.rint(greys, out=greys).astype(np.uint8))


def _check_maximum(largest: int) -> None:
    if largest < LEAST_16_BIT_MAXIMUM:
        raise ValueError(
            f"its values end at {largest}, too early for 16 bits per channel; give the real range of the values as "
            "pixel_range (LOW HIGH), for example 0 4095 for grey images of 12 bits, or convert it to 8 bits"
        )


def reason_of(error: Exception) -> str:
    """Why a picture cannot be read, in one line, from what was raised while it was read."""
    if isinstance(error, UnidentifiedImageError):
        return f"it is damaged or of another format than {', '.join(FORMATS)}"
    if isinstance(error, PILImage.DecompressionBombError):
        return f"it has more than {MAX_PIXELS:,} pixels"
    if type(error) is ValueError:
        return str(error)
    return " ".join(f"{type(error).__name__}: {error}".split())
