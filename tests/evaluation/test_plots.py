"""Maps over images, figures, and the text in them."""

import itertools
import warnings
from io import BytesIO

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from salvage_hf.data.marks import PICTURE_FORMATS, made_here
from salvage_hf.evaluation.plots import (
    bars,
    budget_curves,
    curves,
    drawable,
    file_content,
    matrices,
    picture_grid,
)
from salvage_hf.evaluation.report_figures import _CENTRED, _SIGNED
from salvage_hf.modeling import Geometry, overlay


def test_overlay_keeps_the_picture_and_its_geometry():
    picture = Image.fromarray(np.full((40, 60, 3), 120, dtype=np.uint8))
    values = np.zeros((2, 2))
    values[0, 1], values[1, 0] = 1, -1
    box = (10.0, 0.0, 50.0, 40.0)
    drawn = np.asarray(overlay(picture, values, Geometry(box, box)), dtype=int)
    assert drawn.shape == (40, 60, 3)
    red_minus_blue = drawn[..., 0] - drawn[..., 2]
    assert red_minus_blue[5, 45] > 40  # the upper right speaks for the class
    assert red_minus_blue[35, 15] < -40  # the lower left speaks against it
    assert (red_minus_blue[:, :10] == 0).all()  # there is no colour outside the box
    assert (red_minus_blue[:, 50:] == 0).all()
    assert (np.asarray(overlay(picture, np.zeros((2, 2)))) >= 0).all()  # a map of zeros is drawn too


def test_a_map_beyond_the_picture_is_drawn_where_the_picture_is_seen():
    """Half of the map lies in padding: some beyond the picture, some over a part that was cropped."""
    picture = Image.fromarray(np.full((10, 20, 3), 120, dtype=np.uint8))
    drawn = overlay(picture, np.ones((2, 2)), Geometry((-10.2, -5.0, 20.0, 15.0), (0.0, 0.0, 15.0, 10.0)))
    assert drawn.size == (20, 10)
    pixels = np.asarray(drawn, dtype=int)
    assert (pixels[:, :15, 0] - pixels[:, :15, 2] > 40).all()
    assert (pixels[:, 15:, 0] == pixels[:, 15:, 2]).all()


def test_figures_are_pictures():
    grid = picture_grid([[("a", Image.new("RGB", (4, 8)))], [("b", Image.new("RGB", (8, 4)))] * 2])
    lines = curves({"LIF": {"one": [0.1, 0.5], "two": [0.3, 0.4]}})
    for figure in (grid, lines):
        assert file_content(figure).startswith(b"\x89PNG")
    drawn = {line.get_label(): list(line.get_ydata()) for line in lines.axes[0].get_lines()}
    assert drawn == {"one": [0.1, 0.5], "two": [0.3, 0.4]}
    assert list(lines.axes[0].get_lines()[0].get_xdata()) == [0.5, 1.0]


@pytest.mark.parametrize("count", [1, 3, 8])
def test_legends_stay_inside_their_figure(count):
    figure = bars({"one panel": {f"a rather long name, {number}": [0.1] for number in range(count)}}, "SRG (%)")
    file_content(figure)  # lays it out
    (legend,) = figure.legends
    drawn = legend.get_window_extent()
    assert drawn.x0 >= 0
    assert drawn.x1 <= figure.bbox.x1
    assert len(legend.get_texts()) == count


@pytest.mark.parametrize("columns", [1, 2, 8])
@pytest.mark.parametrize("meanings", [_CENTRED, _SIGNED])
def test_meanings_of_the_colours_stand_beside_each_other(columns, meanings):
    figure = picture_grid([[("", Image.new("RGB", (8, 8)))] * columns] * 3, 1.1, meanings)
    figure.draw_without_rendering()
    *_, bar = figure.axes
    boxes = [label.get_window_extent() for label in bar.get_xticklabels()]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))
    assert boxes[0].x0 >= 0
    assert boxes[-1].x1 <= figure.bbox.x1


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("n01440764_tench", ["n01440764_", "tench"]),
        ("n02102040_english_springer", ["n02102040_", "english_", "springer"]),
        ("an english springer", ["an english", "springer"]),
        ("of a wire-haired dog", ["of a", "wire-haired", "dog"]),
        ("train/dogs/wire-haired", ["train/dogs/", "wire-haired"]),
        ("a_b_c", ["a_b_c"]),
        ("n0144076412345678", ["n01440764123", "45678"]),
    ],
)
def test_labels_break_at_the_joints_of_names(text, lines):
    assert drawable(text, width=12 / 11) == "\n".join(lines)


def test_neighbouring_budgets_have_labels_apart():
    """Two parallel labels are apart where one is past the other's end, or on a line of its own."""
    points = dict.fromkeys((16, 64, 256, 1024, 2000), (0.5, 0.1))
    figure = budget_curves({"SRG": {"RISE": points}, "R-SRG": {"RISE": points}})
    figure.draw_without_rendering()
    for axis in figure.axes:
        labels = axis.get_xticklabels()
        for left, right in itertools.pairwise(labels):
            between = axis.transData.transform((right.get_position()[0], 0)) - axis.transData.transform(
                (left.get_position()[0], 0)
            )
            turned = np.deg2rad(right.get_rotation())
            left.set_rotation(0)  # whose extent is then that of its letters
            box = left.get_window_extent()
            assert between[0] * np.cos(turned) > box.width or between[0] * np.sin(turned) > box.height


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_map_that_is_not_finite_is_refused(value):
    with pytest.raises(ValueError, match="NaN or infinite"):
        overlay(Image.new("RGB", (8, 8)), np.array([[0.0, value]]))


@pytest.mark.parametrize("size", [(1, 500), (500, 1), (3, 900), (900, 3)])
def test_long_and_thin_pictures_make_pictures_of_ordinary_size(size):
    picture = overlay(Image.new("RGB", size), np.ones((2, 2)), Geometry((0, 0, *size), (0, 0, *size)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        content = file_content(picture_grid([[("a", picture), ("b", picture)]]))
    width, height = Image.open(BytesIO(content)).size
    assert width <= 600
    assert height <= 1000


@pytest.mark.parametrize("kind", PICTURE_FORMATS)
def test_files_are_of_the_format_that_was_asked_for(tmp_path, kind):
    file = tmp_path / "picture"
    file.write_bytes(file_content(picture_grid([[("a", Image.new("RGB", (8, 8)))]]), kind))
    if kind in ("pdf", "svg"):
        assert {"pdf": b"%PDF", "svg": b"<svg"}[kind] in file.read_bytes()[:1000]
    else:
        assert Image.open(file).format == {"jpg": "JPEG"}.get(kind, kind.upper())
        assert made_here(file)


def test_a_photograph_was_not_made_here(tmp_path):
    exif = Image.Exif()
    exif[0x0131] = "a camera"
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.jpg", exif=exif)
    assert not made_here(tmp_path / "photo.jpg")
    assert not made_here(tmp_path)


# Text in pictures

PICTURE = Image.new("RGB", (8, 8))
AWKWARD = [
    "",
    "$",
    "from $5 to $10",
    r"$\frac{$ \n\\",
    "two\nlines\r\n\ttab",
    "_hidden",
    "%s {} %",
    "\u72ac\uff08\u732b",  # Chinese characters, for which the font has no glyphs
    "\u0915\u0941",  # Devanagari, which matplotlib does not draw properly
    "\N{DOG FACE}\N{ZERO WIDTH JOINER}",
    "\N{RIGHT-TO-LEFT OVERRIDE}\u05e9\u05dc",
    "\x00\x1b[31m",
    "\ud800",
    "W" * 5000,
    "word " * 500,
]


def drawn_texts(figure) -> str:
    """All text of a figure, without the line breaks that long labels get."""
    texts = [text.get_text() for axis in figure.axes for text in (axis.title, *axis.get_xticklabels())]
    texts += [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    return "".join("".join(texts).split())


@settings(max_examples=3)
@example(AWKWARD[:8])
@example(AWKWARD[8:])
@given(st.lists(st.text(max_size=40), min_size=1, max_size=3, unique=True))
def test_any_label_can_be_drawn_as_it_is(names):
    panel, ends = {names[0]: {name: [0.2, 0.4] for name in names}}, [names[0], names[-1]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a warning for every character without a glyph would flood the terminal
        for figure, shown in (
            (picture_grid([[(name, PICTURE) for name in names]], width=1.0), names),
            (curves(panel), names),
            (bars(panel, label=names[0]), names),
            (matrices({names[0]: np.eye(2)}, ends, *ends), ends),
        ):
            assert Image.open(BytesIO(file_content(figure))).width > 10
            for name in shown:
                if name.isprintable() and len(name) <= 80:
                    assert "".join(name.split()) in drawn_texts(figure)


@pytest.mark.parametrize("length", [81, 5000])
def test_a_very_long_label_keeps_its_start_and_its_end(length):
    figure = picture_grid([[(f"{'x' * length}: 97.3%", PICTURE)]])
    title = figure.axes[0].get_title().replace("\n", "")
    assert len(title) <= 80
    assert title.startswith("xxxx")
    assert title.endswith(": 97.3%")
