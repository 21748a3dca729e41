"""Where the pixels that a model sees lie in the original picture, for image processors of all kinds."""

import importlib.util

import numpy as np
import pytest
import transformers
from PIL import Image, ImageOps
from transformers import (
    BitImageProcessor,
    ConvNextImageProcessor,
    DeiTImageProcessor,
    EfficientNetImageProcessor,
    LevitImageProcessor,
    MobileViTImageProcessor,
    PerceiverImageProcessor,
    PoolFormerImageProcessor,
    SiglipImageProcessor,
    ViTImageProcessor,
)

from salvage_hf.data.pictures import open_image
from salvage_hf.modeling import Geometry, picture_geometry, process


def shortest(edge):
    """The size (width, height) of a resized picture whose shorter side is `edge`."""
    return lambda width, height: (int(edge * width / min(width, height)), int(edge * height / min(width, height)))


def to(width, height):
    return lambda *_: (width, height)


def same(width, height):
    return width, height


#: Processors of classifiers -> (processor, what it resizes to, the width and height of what it crops then).
PROCESSORS = {
    "BiT, DINOv2": (BitImageProcessor(size={"shortest_edge": 256}), shortest(256), (224, 224)),
    "BiT, nearest": (BitImageProcessor(resample=0), shortest(224), (224, 224)),
    "ViT, Swin": (ViTImageProcessor(), to(224, 224), None),
    "ViT, not square": (ViTImageProcessor(size={"height": 160, "width": 320}), to(320, 160), None),
    "ViT, grey": (ViTImageProcessor(image_mean=[0.5], image_std=[0.5]), to(224, 224), None),
    "ViT, 0 to 255": (ViTImageProcessor(do_rescale=False, do_normalize=False), to(224, 224), None),
    "ConvNeXt": (ConvNextImageProcessor(), to(384, 384), None),
    "ConvNeXt, crop_pct": (ConvNextImageProcessor(size={"shortest_edge": 224}), shortest(256), (224, 224)),
    "LeViT": (LevitImageProcessor(), shortest(256), (224, 224)),
    "PoolFormer": (PoolFormerImageProcessor(), shortest(248), (224, 224)),
    "MobileViT": (MobileViTImageProcessor(), shortest(224), (256, 256)),  # pads: it crops more than there is
    "SigLIP": (SiglipImageProcessor(), to(224, 224), None),
    "DeiT": (DeiTImageProcessor(), to(256, 256), (224, 224)),
    "EfficientNet": (EfficientNetImageProcessor(rescale_offset=True), to(346, 346), None),
    "not resized": (BitImageProcessor(do_resize=False), same, (224, 224)),
    "as it is": (ViTImageProcessor(do_resize=False), same, None),
}

SIZES = [(500, 333), (333, 500), (400, 400), (640, 90), (40, 30), (21, 300)]


def expected_box(resized, crop, width, height):
    """The box by arithmetic: a resized picture, of which the centre is cropped."""
    full = resized(width, height)
    shown = crop or full
    box: list[float] = []
    for axis, length in enumerate((width, height)):
        # transformers cuts off the half pixel of what it crops, and rounds up what it pads.
        room = full[axis] - shown[axis]
        start = room // 2 if room >= 0 else -((-room + 1) // 2)
        box += [start * length / full[axis], (start + shown[axis]) * length / full[axis]]
    return box[0], box[2], box[1], box[3]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", PROCESSORS)
def test_the_box_is_what_the_steps_of_the_processor_say(name, size):
    processor, resized, crop = PROCESSORS[name]
    geometry = picture_geometry(processor, *size)
    box = expected_box(resized, crop, *size)
    np.testing.assert_allclose(geometry.box, box, atol=1)
    step = (box[2] - box[0]) / (crop or resized(*size))[0], (box[3] - box[1]) / (crop or resized(*size))[1]
    np.testing.assert_allclose(geometry.box, box, atol=0.1 + 0.3 * max(step))
    inside = max(box[0], 0), max(box[1], 0), min(box[2], size[0]), min(box[3], size[1])
    np.testing.assert_allclose(geometry.seen, inside, atol=1)


def found_squares(processor, picture_of, size):
    """Paints squares all over black pictures: (centre in the original, centre in the processed picture or None)."""
    width, height = size
    side = max(3, min(size) // 16)
    black = process(processor, [picture_of(np.zeros((height, width), np.uint8))])[0].sum(dim=0)
    for x in np.linspace(0, width - side, 5).astype(int):
        for y in np.linspace(0, height - side, 5).astype(int):
            values = np.zeros((height, width), np.uint8)
            values[y : y + side, x : x + side] = 255
            answer = (process(processor, [picture_of(values)])[0].sum(dim=0) - black).abs().double().numpy()
            rows, columns = np.indices(answer.shape) + 0.5
            total = answer.sum()
            centre = ((answer * columns).sum() / total, (answer * rows).sum() / total) if total > 0 else None
            yield (x + side / 2, y + side / 2), side / 2, centre, answer.shape


def check_squares(processor, picture_of, size):
    """Compares squares found in processed pictures with the geometry of the processor; says how many."""
    box, seen = picture_geometry(processor, *size)
    checked = hidden = 0
    for centre, half, found, shape in found_squares(processor, picture_of, size):
        margins = [(centre[axis] - half - seen[axis], seen[axis + 2] - centre[axis] - half) for axis in (0, 1)]
        if any(margin < -2 * half - 4 for pair in margins for margin in pair):
            assert found is None
            hidden += 1
        elif all(margin > half + 4 for pair in margins for margin in pair):  # nothing of it is cut off or mirrored
            for axis in (0, 1):
                step = (box[axis + 2] - box[axis]) / shape[1 - axis]
                assert abs(box[axis] + found[axis] * step - centre[axis]) <= 1
            checked += 1
    return checked, hidden


@pytest.mark.parametrize("size", [(360, 240), (120, 150)], ids=str)
@pytest.mark.parametrize("name", PROCESSORS)
def test_squares_are_where_the_box_says(name, size):
    processor = PROCESSORS[name][0]
    checked, hidden = check_squares(processor, lambda values: Image.fromarray(values).convert("RGB"), size)
    assert checked >= 3
    if name == "LeViT" and size == (360, 240):
        assert hidden > 6


#: Further ones, whose steps are not resize and crop in this order.
OTHERS = {
    "pads at the end": BitImageProcessor(do_pad=True, pad_size={"height": 300, "width": 280}),
    "pads a whole picture": ViTImageProcessor(do_resize=False, do_pad=True, pad_size={"height": 300, "width": 400}),
    "crops, then resizes": PerceiverImageProcessor(),
}


@pytest.mark.parametrize("size", [(360, 240), (120, 150)], ids=str)
@pytest.mark.parametrize("name", OTHERS)
def test_other_orders_of_the_steps(name, size):
    assert check_squares(OTHERS[name], lambda values: Image.fromarray(values).convert("RGB"), size)[0] >= 3


def test_padding_is_not_taken_for_the_picture():
    """A crop of the centre with padding at its end: the picture goes on there, but is not seen."""
    box, seen = picture_geometry(OTHERS["pads at the end"], 500, 333)
    np.testing.assert_allclose(box, (83.3, 0, 83.3 + 280 * 333 / 224, 300 * 333 / 224), atol=1)
    np.testing.assert_allclose(seen, (83.3, 0, 416.7, 333), atol=1)


def test_a_picture_that_the_camera_turned(tmp_path):
    """The geometry is that of the upright picture."""
    exif = Image.Exif()
    exif[274] = 6  # turned by a quarter

    def picture_of(values):
        stored = Image.fromarray(values).transpose(Image.Transpose.ROTATE_90).convert("RGB")
        stored.save(tmp_path / "photo.jpg", exif=exif, quality=100)
        upright = open_image(str(tmp_path / "photo.jpg"))
        assert upright.size == values.shape[::-1]
        assert stored.size == values.shape
        return upright.point(lambda value: 255 * (value > 127))

    for name in ("LeViT", "MobileViT", "ViT, Swin"):
        assert check_squares(PROCESSORS[name][0], picture_of, (240, 160))[0] >= 3


@pytest.mark.parametrize("size", [(9, 7), (5, 11)], ids=str)
@pytest.mark.parametrize("name", [*PROCESSORS, *OTHERS])
def test_every_pixel_of_a_small_picture(name, size):
    """The literal measurement: which pixels of the original, lit one by one, make each processed pixel."""
    processor = {**OTHERS, **{name: row[0] for name, row in PROCESSORS.items()}}[name]
    width, height = size
    values = np.zeros((width * height, height, width), np.uint8)
    values[np.arange(width * height), np.arange(width * height) // width, np.arange(width * height) % width] = 255
    dark = process(processor, [Image.new("RGB", size)]).sum(dim=1).double().numpy()
    answers = process(processor, (Image.fromarray(lit) for lit in values)).sum(dim=1).double().numpy() - dark
    answers = answers.clip(0).reshape(height, width, *answers.shape[1:])  # [H, W, h, w]
    total = answers.sum((0, 1))
    box, seen = picture_geometry(processor, *size)
    for axis in (0, 1):
        centres = np.arange(size[axis]) + 0.5
        weights = answers.sum(axis)  # of a row or column of the original
        with np.errstate(invalid="ignore"):
            lies = np.einsum("a,ahw->hw", centres, weights) / total  # NaN in the padding
        step = (box[axis + 2] - box[axis]) / total.shape[1 - axis]
        line = box[axis] + (np.arange(total.shape[1 - axis]) + 0.5) * step
        line = line.clip(0, size[axis])
        assert np.nanmax(np.abs(lies - (line[:, None] if axis else line))) <= 1
        assert np.isnan(lies).any() == (box != pytest.approx(seen, abs=0.3))


@pytest.mark.parametrize("size", [(1, 1), (1, 20), (2, 2), (40, 2), (3, 3)], ids=str)
@pytest.mark.parametrize("name", PROCESSORS)
def test_pictures_of_few_pixels(name, size):
    processor, resized, crop = PROCESSORS[name]
    box, seen = picture_geometry(processor, *size)
    expected = expected_box(resized, crop, *size)
    inside = max(expected[0], 0), max(expected[1], 0), min(expected[2], size[0]), min(expected[3], size[1])
    np.testing.assert_allclose(seen, inside, atol=1)
    np.testing.assert_allclose(box, expected, atol=2)  # padding has as many pixels as a picture of two is enlarged


@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("timm", "torchvision")),
    reason="TimmWrapper's processor needs timm and torchvision",
)
def test_the_transforms_of_timm():
    settings = {"input_size": (3, 224, 224), "crop_pct": 0.9, "interpolation": "bicubic"}
    processor = transformers.TimmWrapperImageProcessor(pretrained_cfg=settings)
    for size in SIZES:
        np.testing.assert_allclose(
            picture_geometry(processor, *size).box, expected_box(shortest(248), (224, 224), *size), atol=1
        )


# What is refused


def after(step):
    """A processor that does `step` to pictures before it resizes them."""

    class Stepping(type(ViTImageProcessor())):
        calls = 0

        def preprocess(self, images, **kwargs):
            type(self).calls += 1
            return super().preprocess(step(images), **kwargs)

    return Stepping()


def mirrored_padding(picture):
    return Image.fromarray(np.pad(np.asarray(picture), ((0, 0), (40, 40), (0, 0)), mode="reflect"))


def randomly_cropped(picture, generator=np.random.default_rng(0)):  # noqa: B008
    left, top = generator.integers(0, picture.width // 2), generator.integers(0, picture.height // 2)
    return picture.crop((left, top, left + picture.width // 2, top + picture.height // 2))


def without_a_square(picture):
    copy = picture.copy()
    copy.paste((90, 90, 90), (50, 50, 90, 90))
    return copy


STEPS = {
    "mirrors": ImageOps.mirror,
    "turns upside down": ImageOps.flip,
    "turns by a quarter": lambda picture: picture.transpose(Image.Transpose.ROTATE_90),
    "turns by 5 degrees": lambda picture: picture.rotate(5, Image.Resampling.BILINEAR),
    "transposes": lambda picture: picture.transpose(Image.Transpose.TRANSPOSE),
    "shears": lambda picture: picture.transform(picture.size, Image.Transform.AFFINE, (1, 0.1, 0, 0, 1, 0)),
    "perspective": lambda picture: picture.transform(
        picture.size, Image.Transform.PERSPECTIVE, (1, 0, 0, 0, 1, 0, 0.001, 0)
    ),
    "pads by reflection": mirrored_padding,
    "crops at random": randomly_cropped,
    "erases a square": without_a_square,
    "has two levels": lambda picture: picture.point(lambda value: 255 * (value > 127)),
}


@pytest.mark.parametrize("size", [(300, 200), (160, 160)], ids=str)
@pytest.mark.parametrize("name", STEPS)
def test_more_than_resize_crop_and_pad_is_refused(name, size):
    message = (
        f"the image processor Stepping does more to a picture of {size[0]} x {size[1]} pixels than to resize, crop "
        "and pad it with one value, so that a map of what the model sees has no place in it"
    )
    with pytest.raises(ValueError, match=f"^{message}$"):
        picture_geometry(after(STEPS[name]), *size)


def test_a_size_that_depends_on_the_picture_is_refused():
    processor = after(lambda picture: picture.crop((0, 0, 20 + picture.getpixel((0, 0))[0] // 10, 20)))
    processor.do_resize = False
    with pytest.raises(ValueError, match="does more to a picture of 50 x 40 pixels than to resize, crop and pad it"):
        picture_geometry(processor, 50, 40)


@pytest.mark.parametrize(
    "step",
    [
        lambda picture: picture.resize((64, 64)),  # two resizes
        lambda picture: ImageOps.invert(picture),
        lambda picture: ImageOps.expand(picture, 30, fill=(255, 0, 90)),  # pads, then resizes
        lambda picture: ImageOps.pad(picture, (200, 200)),
        lambda picture: picture.convert("L").convert("RGB"),
    ],
    ids=["resizes twice", "inverts", "pads", "pads to a square", "grey"],
)
def test_what_is_a_place_for_every_pixel_is_known(step):
    checked, _ = check_squares(after(step), lambda values: Image.fromarray(values).convert("RGB"), (300, 200))
    assert checked >= 3


def test_what_shows_nothing_or_a_single_row_is_refused():
    with pytest.raises(ValueError, match="gives black and white pictures the same pixel values"):
        picture_geometry(after(lambda picture: Image.new("RGB", picture.size)), 40, 30)
    with pytest.raises(ValueError, match="a picture of 40 x 30 pixels in a single row, in which no place can be told"):
        picture_geometry(ViTImageProcessor(size={"height": 1, "width": 40}), 40, 30)


# How often it is asked


def test_the_same_settings_are_measured_once_per_size():
    first = after(lambda picture: picture)
    known = picture_geometry(first, 50, 40)
    runs = type(first).calls
    assert 0 < runs <= 10
    second = type(first)()
    assert picture_geometry(second, 50, 40) is known
    assert type(first).calls == runs
    picture_geometry(first, 40, 50)
    assert type(first).calls == 2 * runs
    first.size = {"height": 32, "width": 32}
    picture_geometry(first, 50, 40)
    assert type(first).calls == 3 * runs
    same = {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}}
    assert picture_geometry(LevitImageProcessor(**same), 50, 40) != picture_geometry(BitImageProcessor(**same), 50, 40)


# What it is used for


@pytest.mark.parametrize(
    "geometry",
    [
        Geometry((0, 0, 12, 9), (0, 0, 12, 9)),
        Geometry((2.3, 1.2, 9.9, 8.4), (2.3, 1.2, 9.9, 8.4)),
        Geometry((-5, -2, 14, 30), (0, 0, 12, 9)),
        Geometry((3, 0, 20, 9), (3, 0, 7, 9)),  # it crops, then pads
    ],
)
@pytest.mark.parametrize("shape", [(9, 12), (5, 7), (40, 40)])
def test_a_region_is_shown_pixel_by_pixel(geometry, shape):
    region = np.random.default_rng(0).random((9, 12)) < 0.5
    shown = geometry.shown(region, *shape)
    (left, top, right, bottom), seen = geometry
    for i in range(shape[0]):
        for j in range(shape[1]):
            x = left + (j + 0.5) * (right - left) / shape[1]
            y = top + (i + 0.5) * (bottom - top) / shape[0]
            is_seen = seen[0] <= x < seen[2] and seen[1] <= y < seen[3]
            assert shown[i, j] == (is_seen and region[int(y), int(x)])


def test_a_geometry_in_a_smaller_copy():
    geometry = Geometry((-10.0, 0.0, 110.0, 60.0), (0.0, 0.0, 100.0, 60.0))
    assert geometry.scaled(0.5, 0.25) == Geometry((-5.0, 0.0, 55.0, 15.0), (0.0, 0.0, 50.0, 15.0))
