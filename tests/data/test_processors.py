"""What an image processor does to a picture."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, MobileViTImageProcessor

from salvage_hf.data.processors import channel_map, processed_size, to_pictures
from salvage_hf.modeling import process


@pytest.mark.parametrize(
    ("overrides", "size"),
    [
        ({}, (16, 16)),
        ({"do_center_crop": False}, None),
        ({"do_center_crop": False, "size": {"height": 20, "width": 24}}, (20, 24)),
        ({"crop_size": {"height": 8, "width": 12}}, (8, 12)),
    ],
)
def test_processed_size_is_what_the_processor_returns(save_processor, tmp_path, overrides, size):
    save_processor(tmp_path, **overrides)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert processed_size(processor) == size
    if size:
        pixel_values = processor(Image.new("RGB", (40, 30)), return_tensors="pt")["pixel_values"]
        assert pixel_values.shape[-2:] == size


@pytest.mark.parametrize("image_std", [[0.0, 1.0, 1.0], [float("nan")] * 3])
def test_pixels_that_are_no_numbers_are_refused(save_processor, tmp_path, image_std):
    save_processor(tmp_path, image_std=image_std)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"gives pixel values that are NaN or infinite: check its image_std .*(0.0|nan)"
    ):
        process(processor, [Image.new("RGB", (20, 20), "white")])


@pytest.mark.parametrize("factor", [float("inf"), float("nan"), 1e308])
def test_rescaling_beyond_all_numbers_is_refused(save_processor, tmp_path, factor):
    save_processor(tmp_path, rescale_factor=factor)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"NaN or infinite: .*rescale_factor (inf|nan|1e\+308)"):
        process(processor, [Image.new("RGB", (20, 20), "white")])


@pytest.mark.parametrize("wrong", [{"size": {"shortest_edge": 0}}, {"image_mean": [0.5, 0.5]}, {"resample": 77}])
def test_what_a_processor_raises_becomes_a_sentence(save_processor, tmp_path, wrong):
    save_processor(tmp_path, **wrong)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="the image processor BitImageProcessor"):
        process(processor, [Image.new("RGB", (20, 20))])


@pytest.mark.parametrize("do_convert_rgb", [True, False])
def test_a_processor_of_one_channel_gets_grey_pictures(save_processor, tmp_path, do_convert_rgb):
    save_processor(tmp_path, image_mean=[0.5], image_std=[0.25], do_convert_rgb=do_convert_rgb)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    picture = Image.new("RGB", (20, 20), (255, 0, 0))
    pixel_values = process(processor, [picture, picture])
    assert pixel_values.shape == (2, 1, 16, 16)
    grey = 76 / 255  # the luma of red
    assert torch.allclose(pixel_values, torch.tensor((grey - 0.5) / 0.25))
    assert (to_pictures(pixel_values, processor) == 76).all()
    assert to_pictures(pixel_values, processor).shape == (2, 16, 16, 3)
    assert processed_size(processor) == (16, 16)


@pytest.mark.parametrize(
    "options",
    [{}, {"do_normalize": False}, {"do_rescale": False}, {"rescale_factor": 1 / 127.5}, {"image_std": [0.1, 0.2, 3.0]}],
)
def test_pictures_of_pixel_values_are_what_the_model_sees(save_processor, tmp_path, options):
    save_processor(tmp_path, **options)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    colours = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    pixel_values = process(processor, [Image.fromarray(colours)])
    assert np.array_equal(to_pictures(pixel_values, processor)[0].numpy(), colours[2:18, 2:18])


@pytest.mark.parametrize("pad_size", [{"height": 17, "width": 17}, {"height": 16, "width": 60}])
def test_pictures_of_padded_pixel_values(save_processor, tmp_path, pad_size):
    """Most of a picture may be padding, which says nothing about the values."""
    save_processor(tmp_path, do_pad=True, pad_size=pad_size)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    colours = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    pixel_values = process(processor, [Image.fromarray(colours)])
    assert pixel_values.shape[-2:] == (pad_size["height"], pad_size["width"])
    assert np.array_equal(to_pictures(pixel_values, processor)[0, :16, :16].numpy(), colours[2:18, 2:18])


SIZE = {"size": {"height": 16, "width": 16}}
PROCESSORS = {
    "half": {},
    "imagenet": {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
    "not normalised": {"do_normalize": False},
    "grey": {"image_mean": [0.5], "image_std": [0.25]},
    "padded": {"crop_size": {"height": 24, "width": 32}},
}


@pytest.fixture
def processor_of(save_processor, tmp_path):
    def build(name):
        if name == "exchanged":  # blue, green, red, of 0 to 1
            return MobileViTImageProcessor(**SIZE, crop_size=SIZE["size"])
        save_processor(tmp_path, **PROCESSORS[name])
        return AutoImageProcessor.from_pretrained(tmp_path)

    return build


@pytest.mark.parametrize("wanted", ["half", "imagenet", "exchanged", "grey"])
@pytest.mark.parametrize("given", [*PROCESSORS, "exchanged"])
def test_pixel_values_are_made_from_those_of_another_processor(processor_of, given, wanted):
    given, wanted, rng = processor_of(given), processor_of(wanted), np.random.default_rng(0)
    is_grey = 1 in (len(getattr(processor, "image_mean", None) or [0, 0, 0]) for processor in (given, wanted))
    found = channel_map(given, wanted)
    if found is None:
        size = len(process(given, [Image.new("RGB", (16, 16))])[0])
        found = torch.eye(size, size + 1).tolist()
    for _ in range(5):
        picture = Image.new("RGB", (16, 16), tuple(rng.integers(0, 256, 3).tolist()))
        if is_grey:
            picture = picture.convert("L").convert("RGB")
        have, want = (process(processor, [picture])[0].flatten(1) for processor in (given, wanted))
        have, want = (values[:, values.shape[1] // 2 + 8] for values in (have, want))  # in the middle, no padding
        for (*factors, constant), channel in zip(found, want.tolist(), strict=True):
            made = sum(factor * value for factor, value in zip(factors, have.tolist(), strict=True)) + constant
            assert made == pytest.approx(channel, abs=0.02 if is_grey else 1e-4)  # a grey value is rounded


def test_nothing_is_changed_where_processors_agree(processor_of):
    assert channel_map(processor_of("half"), processor_of("padded")) is None
    assert channel_map(processor_of("half"), processor_of("imagenet")) is not None


def test_a_processor_that_mixes_colours_up_is_refused(processor_of):
    def grey_of_three(picture, return_tensors):
        values = torch.tensor(np.asarray(picture.convert("L"), dtype=np.float32))
        return {"pixel_values": values.expand(1, 3, -1, -1)}

    with pytest.raises(ValueError, match="gives 3 channels that do not tell all colours apart"):
        channel_map(grey_of_three, processor_of("half"))
