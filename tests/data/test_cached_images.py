"""Images that are processed once: the same numbers as without a cache, wherever they are kept."""

import re
import types

import numpy as np
import psutil
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from image_files import config_with, parquet, picture, png
from PIL import Image
from transformers import AutoImageProcessor

from salvage_hf.data import cached_images
from salvage_hf.data.cached_images import CachedImages, _place, image_loader
from salvage_hf.data.images import ProcessedImages
from salvage_hf.data.loading import load_images

CPU = torch.device("cpu")


def both(dataset, processor, config=None, num_workers=0, **options):
    """The images without a cache, and with a filled one."""
    plain, cached = (kind(dataset, processor, config, **options) for kind in (ProcessedImages, CachedImages))
    cached.fill(CPU, num_workers, show_progress=False)
    return plain, cached


def assert_same_batches(plain, cached):
    """Also in another order, and with an item twice; bit for bit, so that 0 and -0 differ."""
    everything = list(range(len(plain)))
    for indices in (everything, everything[::-1], [len(plain) - 1, 0, 0]):
        batch = cached.batch(indices)
        expected = torch.utils.data.default_collate([plain[index] for index in indices])
        assert all(torch.equal(values, expected[name]) for name, values in plain.batch(indices).items())
        assert batch.keys() == expected.keys()
        for name, values in batch.items():
            assert values.dtype == expected[name].dtype
            assert values.shape == expected[name].shape
            assert values.is_contiguous()
            bits = torch.int32 if name == "pixel_values" else torch.int64
            assert torch.equal(values.view(bits), expected[name].view(bits)), name


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
        {"do_normalize": False},
        {"do_normalize": False, "do_rescale": False},
        {"do_rescale": False},
        {"rescale_factor": -1 / 127.5},
        {"image_mean": [0.449], "image_std": [0.226]},
    ],
    ids=str,
)
def test_batches_are_bit_for_bit_those_without_a_cache(folder, save_processor, tmp_path, settings):
    save_processor(tmp_path, **settings)
    dataset, processor = load_images(folder=str(folder)), AutoImageProcessor.from_pretrained(tmp_path)
    plain, cached = both(dataset, processor, config_with("English springer", "tench"), num_views=4, seed=2)
    assert cached.kept.dtype == torch.uint8
    assert len(cached.kept) == 24
    assert_same_batches(plain, cached)


def test_all_8_bits_of_a_picture_come_back(tmp_path, save_processor):
    save_processor(tmp_path, do_resize=False, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    colours = Image.fromarray(np.stack([ramp, ramp[::-1], ramp.T], axis=-1))
    dataset = load_images(parquet(tmp_path, [png(colours)]))
    plain, cached = both(dataset, AutoImageProcessor.from_pretrained(tmp_path))
    assert torch.equal(cached.kept[0].permute(1, 2, 0), torch.from_numpy(np.array(colours)))
    assert not cached.tables.isnan().any()
    assert_same_batches(plain, cached)


def test_processes_may_read_the_images_and_none_is_read_again(folder, processor, monkeypatch):
    plain, cached = both(load_images(folder=str(folder)), processor, num_workers=1)
    assert_same_batches(plain, cached)
    monkeypatch.setattr("salvage_hf.data.images.open_image", lambda *_: pytest.fail("an image was read again"))
    cached.batch([3, 1])


def ramp(pixels):
    return pixels + torch.linspace(0, 1, pixels.shape[-1])


def zeros_of_both_signs(pixels):
    zeros = torch.zeros_like(pixels)
    zeros[..., 0] = -0.0
    return zeros


class Filtered:
    """A processor whose values are no picture of 8 bits, bit for bit, where a picture is brighter than 150."""

    def __init__(self, processor, change):
        self.processor, self.change = processor, change

    def __call__(self, picture, **options):
        pixels = self.processor(picture, **options)["pixel_values"]
        return {"pixel_values": self.change(pixels) if np.asarray(picture).mean() > 150 else pixels}


@pytest.mark.parametrize("first", [0, 17], ids=["the first image", "an image of the second batch"])
@pytest.mark.parametrize("change", [ramp, zeros_of_both_signs])
def test_values_that_8_bits_do_not_hold_are_kept_in_float32(tmp_path, processor, caplog, first, change):
    assert cached_images._BATCH_SIZE < 17
    dataset = load_images(parquet(tmp_path, [png(picture(9 if number >= first else 1)) for number in range(19)]))
    with caplog.at_level("INFO", "salvage_hf"):
        plain, cached = both(dataset, Filtered(processor, change))
    assert cached.kept.dtype == torch.float32
    assert_same_batches(plain, cached)
    (line,) = caplog.messages
    assert "float32 values of 19 items are kept on cpu: the processor Filtered gives over 256 values" in line


def test_images_of_several_sizes_are_refused(tmp_path, save_processor):
    """Those of one batch `ProcessedImages` refuses itself."""
    save_processor(tmp_path, do_center_crop=False)
    sizes = [(20, 20)] * cached_images._BATCH_SIZE + [(40, 20)]
    dataset = load_images(parquet(tmp_path, [png(picture(size=size)) for size in sizes]))
    images = CachedImages(dataset, AutoImageProcessor.from_pretrained(tmp_path))
    with pytest.raises(ValueError, match=r"keeps images of one size, .* gives \[3, 20, 20\] and \[3, 20, 40\]"):
        images.fill(CPU, show_progress=False)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_filling_draws_no_random_number_of_the_run(folder, processor, num_workers):
    before = torch.get_rng_state()
    both(load_images(folder=str(folder)), processor, num_workers=num_workers)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("shuffle", [False, True])
def test_prepared_loaders_give_the_same_batches_and_move_none(folder, processor, shuffle):
    """6 items are two batches of 4, of which accelerate's gather leaves 6 rows."""
    plain, cached = both(load_images(folder=str(folder)), processor, config_with("English springer", "tench"))
    made = []
    cached.batch = lambda indices: made.append(CachedImages.batch(cached, indices)) or made[-1]
    rows = {}
    for images in (plain, cached):
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        accelerator = Accelerator(cpu=True)
        torch.manual_seed(0)
        loader = accelerator.prepare(image_loader(images, 4, shuffle=shuffle, num_workers=0, pin_memory=False))
        assert len(loader) == 2
        batches = list(loader)
        rows[images] = batches
        gathered = [accelerator.gather_for_metrics(batch["ids"]) for batch in loader]
        assert sorted(torch.cat(gathered).tolist()) == [0, 1, 2, 3, 4, 5]
    for batch, expected, one in zip(rows[cached], rows[plain], made, strict=False):
        assert all(torch.equal(batch[name], expected[name]) for name in expected)
        assert all(batch[name] is one[name] for name in one)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("num_processes", [1, 2])
def test_where_images_are_kept(monkeypatch, device, dtype, num_processes):
    """On a GPU up to a quarter of what is free, in memory up to half of what is available to all processes."""
    shape = 10, 3, 8, 8
    needed = 10 * 3 * 8 * 8 * (1 if dtype == torch.uint8 else 4)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(num_processes))
    for on_gpu in (0, 4 * needed - 1, 4 * needed, 5 * needed):
        for in_memory in (0, 2 * num_processes * needed - 1, 2 * num_processes * needed):
            monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=on_gpu: (free, free))
            memory = types.SimpleNamespace(available=in_memory)
            monkeypatch.setattr(psutil, "virtual_memory", lambda memory=memory: memory)
            if device == "cuda" and on_gpu >= 4 * needed:
                assert _place(shape, dtype, torch.device("cuda")).type == "cuda"
            elif in_memory >= 2 * num_processes * needed:
                assert _place(shape, dtype, torch.device(device)).type == "cpu"
            else:
                with pytest.raises(ValueError, match="--dataloader_num_workers"):
                    _place(shape, dtype, torch.device(device))


@pytest.mark.parametrize(
    ("device", "limits"),
    [
        ("cpu", "half of the 1 GB available in memory"),
        ("cuda", "a quarter of the 2 GB free on the GPU, and half of the 1 GB available in memory"),
    ],
)
def test_too_little_memory_is_told_with_what_is_needed(monkeypatch, device, limits):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2e9, 80e9))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: types.SimpleNamespace(available=1e9))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    said = (
        "cache_images needs 0.602 GB for 4000 items in each of 1 processes on this machine: more than "
        f"{limits}; leave it out, and let --dataloader_num_workers processes load the images"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        _place((4000, 3, 224, 224), torch.uint8, torch.device(device))
