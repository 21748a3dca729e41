"""The mark in files that explain images: by it they are known again, replaced by later ones, and never explained."""

from pathlib import Path

from PIL import Image

#: The formats of pictures in files, which are also the suffixes of their names.
PICTURE_FORMATS = ("png", "jpg", "jpeg", "webp", "pdf", "svg")

#: The mark. It stands in the EXIF data of PNG, JPEG and WebP files, and as text in the others.
MARK = "made by salvage_hf"

_EXIF_SOFTWARE = 0x0131  # the tag for the name of the program that made a picture

#: The formats whose files hold the mark as text, this near to their beginning or end.
_AS_TEXT, _REACH = (".pdf", ".svg", ".json", ".npz"), 1 << 16


def exif_mark() -> bytes:
    """The mark as EXIF data."""
    exif = Image.Exif()
    exif[_EXIF_SOFTWARE] = MARK
    return exif.tobytes()


def made_here(file: Path) -> bool:
    """Whether a file has the mark; of pictures the pixels are not read."""
    try:
        if file.suffix.lower() in _AS_TEXT:
            with file.open("rb") as opened:
                beginning = opened.read(_REACH)
                opened.seek(max(0, file.stat().st_size - _REACH))
                return MARK.encode() in beginning or MARK.encode() in opened.read()
        with Image.open(file, formats=("PNG", "JPEG", "WEBP")) as picture:
            return MARK.encode() in picture.info.get("exif", b"")
    except Exception:  # Pillow raises many types of error
        return False
