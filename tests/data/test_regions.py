"""Annotated regions: which mask belongs to which image, and what its pixels mean."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from image_files import EPS, parquet, picture, png
from PIL import Image
from transformers import BitImageProcessor

from salvage_hf.data.images import ProcessedImages
from salvage_hf.data.loading import load_images
from salvage_hf.data.regions import read_mask
from salvage_hf.localization import relevance_rank_accuracy

#: Keeps pictures of 20 x 20 pixels as they are.
KEEP = BitImageProcessor(size={"height": 20, "width": 20}, do_center_crop=False)
#: Shows a part of them.
CROP = BitImageProcessor(size={"shortest_edge": 20}, crop_size={"height": 16, "width": 12})

#: Colours of PASCAL VOC for the numbers 0 to 3, and cream for its border, 255.
VOC = [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0] + [0, 0, 0] * 251 + [224, 224, 192]


def with_palette(numbers, palette):
    mask = Image.fromarray(numbers.astype(np.uint8), "P")
    mask.putpalette(palette)
    return mask


def grey(values):
    return Image.fromarray(values.astype(np.uint8))


def read(mask, tmp_path, processor=KEEP, size=(20, 20), **options):
    mask.save(tmp_path / "mask.png", **options)
    shown = (16, 12) if processor is CROP else (20, 20)
    return read_mask(tmp_path / "mask.png", processor, shown, size).numpy()


#: Ways to write the same region.
WRITTEN = {
    "white": lambda region: grey(255 * region),
    "ones": lambda region: grey(region),
    "1 bit": lambda region: Image.fromarray(region),
    "16 bits": lambda region: Image.fromarray(region.astype(np.uint16) * 65535),
    "12 bits": lambda region: Image.fromarray(region.astype(np.uint16) * 4095),
    "RGB": lambda region: grey(255 * region).convert("RGB"),
    "RGBA": lambda region: grey(255 * region).convert("RGBA"),
    "grey and opaque": lambda region: grey(255 * region).convert("LA"),
    "palette of greys": lambda region: with_palette(255 * region, [value for value in range(256) for _ in "RGB"]),
    "palette of black and white": lambda region: with_palette(1 - region, [255, 255, 255, 0, 0, 0]),
    "palette of colours": lambda region: with_palette(region * 3, VOC),
}


@given(
    rows=st.lists(st.integers(0, 2**20 - 1), min_size=20, max_size=20),
    how=st.sampled_from(sorted(WRITTEN)),
    processor=st.sampled_from([KEEP, CROP]),
)
def test_a_region_is_the_same_however_it_is_written(tmp_path, rows, how, processor):
    region = np.array([[row >> bit & 1 for bit in range(20)] for row in rows], dtype=bool)
    shown = read(WRITTEN[how](region), tmp_path, processor)
    assert np.array_equal(shown, region if processor is KEEP else region[2:18, 4:16])


def test_padding_holds_no_region(tmp_path):
    grey(np.full((20, 20), 255)).save(tmp_path / "mask.png")
    pads = BitImageProcessor(do_resize=False, crop_size={"height": 24, "width": 30})
    expected = np.zeros((24, 30), dtype=bool)
    expected[2:22, 5:25] = True
    assert np.array_equal(read_mask(tmp_path / "mask.png", pads, (24, 30), (20, 20)).numpy(), expected)


def test_numbers_of_a_palette_mean_what_voc_means(tmp_path):
    numbers = np.zeros((20, 20), dtype=int)
    numbers[3:9, 3:9], numbers[4:8, 4:8], numbers[12:15, 2:18] = 255, 1, 3
    region = read(with_palette(numbers, VOC), tmp_path)
    assert np.array_equal(region, (numbers == 1) | (numbers == 3))
    perfect, mask = torch.from_numpy(region).float()[None], torch.from_numpy(region)[None]
    assert relevance_rank_accuracy(perfect, mask).item() == 1


def levels(*values):
    """A grey picture in stripes of these values."""
    return grey(np.tile(np.array(values).repeat(20 // len(values)), (20, 1)))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (levels(0, 128, 255, 255), "25.0% of its pixels are neither 0 nor its largest value, 255, but for example 128"),
        (levels(0, 15, 0, 255), "for example 15"),  # classes as grey values, with a border of 255
        (levels(1, 1, 2, 2), "neither 0 nor"),  # a black that is not 0
        (levels(*range(20)), "neither 0 nor"),
        (Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20)), "neither 0 nor"),
        (Image.new("RGB", (20, 20), (255, 0, 0)), "it has colours; a region is white, the rest black"),
        (Image.new("RGBA", (20, 20), (255, 255, 255, 100)), "it is transparent in places"),
        (Image.new("LA", (20, 20), (255, 0)), "it is transparent in places"),
        (with_palette(np.ones((20, 20)), [255, 0, 0, 0, 0, 0]), "does not begin with black"),
        (Image.new("L", (21, 20)), "its size is 21 x 20, the upright picture's 20 x 20"),
    ],
)
def test_masks_that_may_mean_something_else_are_refused_by_name(tmp_path, mask, message):
    with pytest.raises(ValueError, match=message) as error:
        read(mask, tmp_path)
    assert str(error.value).startswith(f"mask '{tmp_path / 'mask.png'}' cannot be used: ")


def test_a_palette_with_transparent_colours_is_refused(tmp_path):
    with pytest.raises(ValueError, match="transparent"):
        read(with_palette(np.eye(20), VOC), tmp_path, transparency=1)


@pytest.mark.parametrize("how", sorted(WRITTEN))
def test_an_empty_region_is_valid(tmp_path, how):
    assert not read(WRITTEN[how](np.zeros((20, 20), dtype=bool)), tmp_path).any()


@pytest.mark.parametrize("content", [EPS, b"", b"no image"])
def test_masks_that_are_no_images_are_refused_by_name(tmp_path, content):
    (tmp_path / "mask.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"mask '.*mask.png' cannot be used: it is damaged or of another format"):
        read_mask(tmp_path / "mask.png", KEEP, (20, 20), (20, 20))


def test_a_mask_is_that_of_the_upright_picture(tmp_path, processor):
    """The camera was turned, and the picture's file says so; its mask is upright or says so too."""
    exif = Image.Exif()
    exif[274] = 6
    (tmp_path / "images").mkdir()
    picture(size=(30, 20)).save(tmp_path / "images" / "photo.jpg", exif=exif)
    region = np.zeros((30, 20), dtype=bool)  # upright
    region[:10] = True
    masks = tmp_path / "masks" / "images"
    masks.mkdir(parents=True)

    def item():
        images = load_images(folder=str(tmp_path / "images"))
        return ProcessedImages(images, processor, mask_dir=str(tmp_path / "masks"))[0]

    grey(255 * region).save(masks / "photo.png")
    upright = item()["masks"]
    assert upright.dtype == torch.bool
    assert upright[:3].all()
    assert not upright[-3:].any()
    turned = np.rot90(region)
    grey(255 * turned).save(masks / "photo.png", exif=exif)
    assert torch.equal(item()["masks"], upright)
    grey(255 * turned).save(masks / "photo.png")
    with pytest.raises(ValueError, match=r"photo.png' cannot be used: its size is 30 x 20, the upright picture's 20 x"):
        item()


def test_a_mask_belongs_to_one_image(folder, processor, tmp_path):
    tench = folder / "n01440764_tench"
    picture(7).save(tench / "n01440764_tench_val_0.png")
    with pytest.raises(ValueError, match=r"several images would have the same mask: \['.*tench_val_0.png'\]"):
        ProcessedImages(load_images(folder=str(folder)), processor, mask_dir=str(tmp_path / "masks"))
    nameless = load_images(parquet(tmp_path, [png(picture(0))]))
    with pytest.raises(ValueError, match="needs images with file names, 1 have none"):
        ProcessedImages(nameless, processor, mask_dir=str(tmp_path / "masks"))
