"""Images that are processed once and then taken from memory, batch by batch."""

import logging
import os

import psutil
import torch
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from typing_extensions import override

from .images import ProcessedImages
from .processors import to_pictures

logger = logging.getLogger(__name__)

#: The parts of the free memory of a GPU, and of the available memory of the machine, that images may take.
SHARE_OF_GPU, SHARE_OF_MACHINE = 1 / 4, 1 / 2

#: Items that are processed at once to fill a cache.
_BATCH_SIZE = 16


class CachedImages(ProcessedImages):
    """`ProcessedImages` that `fill` processes once; from then on `batch` gives the same numbers without a loop.

    Pictures of 8 bits have at most 256 values per channel once they are processed. The 8 bits are kept, and the exact
    float32 value of each in a table per channel. Where a processor gives more values, float32 is kept. Masks are not.

    An epoch gives each process of a run other items, so every process keeps all of them.

    Attributes:
        device: where `batch` puts batches.
        kept: the I items, uint8 or float32 [I, C, H, W].
        tables: the values of the 8 bits of each channel, float32 [C, 256].
        kept_labels: the labels of the images, int64; None where there are none.
    """

    device: torch.device
    kept: torch.Tensor
    tables: torch.Tensor
    kept_labels: torch.Tensor | None

    def fill(self, device: torch.device, num_workers: int = 0, show_progress: bool = True) -> None:
        """Processes all items, and keeps them where there is room (`_place`).

        Args:
            device: where `batch` puts batches.
            num_workers: processes that read images meanwhile; no images are read afterwards.
            show_progress: whether to draw a progress bar.

        Raises:
            ValueError: where memory is short, an item cannot be read, or the items differ in size.
        """
        self.device, self.show_progress = device, show_progress
        # With a generator of its own: a loader draws a number, which would be missing in the run's random numbers.
        loader = DataLoader(self, _BATCH_SIZE, num_workers=num_workers, generator=torch.Generator())
        is_exact = self._keep(loader, torch.uint8)
        if not is_exact:
            del self.kept  # its memory is needed
            self._keep(loader, torch.float32)
        logger.info(
            "cache_images: %s of %d items are kept on %s%s",
            "8 bits" if is_exact else "float32 values",
            len(self),
            self.kept.device,
            "" if is_exact else f": the processor {type(self.processor).__name__} gives over 256 values per channel",
        )
        self.tables = self.tables.to(device)
        self.kept_labels = None if self.labels is None else torch.tensor(self.labels, device=device)

    def _keep(self, loader: DataLoader, dtype: torch.dtype) -> bool:
        """Keeps all items in a type; False, with some of them kept, where uint8 cannot hold one exactly."""
        done = 0
        for item in tqdm(loader, desc="Images", leave=False, disable=not self.show_progress):
            pixel_values = item["pixel_values"]
            if not done:
                shape = len(self), *pixel_values.shape[1:]
                self.kept = torch.empty(shape, dtype=dtype, device=_place(shape, dtype, self.device))
                self.tables = torch.full((shape[1], 256), torch.nan)
            elif pixel_values.shape[1:] != self.kept.shape[1:]:
                sizes = [list(size) for size in (self.kept.shape[1:], pixel_values.shape[1:])]
                raise ValueError(
                    f"cache_images keeps images of one size, the image processor {type(self.processor).__name__} gives "
                    f"{sizes[0]} and {sizes[1]}"
                )
            kept = pixel_values if dtype == torch.float32 else self._eight_bits(pixel_values)
            if kept is None:
                return False
            self.kept[done : done + len(kept)] = kept
            done += len(kept)
        return True

    def _eight_bits(self, pixel_values: torch.Tensor) -> torch.Tensor | None:
        """The 8 bits of which the tables make exactly these pixel values [B, C, H, W]; None where there are none.

        Values that are seen for the first time are written to the tables.
        """
        bits = to_pictures(pixel_values, self.processor).permute(0, 3, 1, 2)[:, : pixel_values.shape[1]]
        for channel, table in enumerate(self.tables):
            places, values = bits[:, channel].long(), pixel_values[:, channel]
            is_new = table[places].isnan()  # `process` has refused pixel values that are NaN
            table[places[is_new]] = values[is_new]
            if not torch.equal(table[places].view(torch.int32), values.contiguous().view(torch.int32)):
                return None
        return bits

    @override
    def batch(self, indices: list[int]) -> dict[str, torch.Tensor]:
        """The items at `indices`, stacked on the device: bit for bit those of `ProcessedImages`."""
        ids = torch.tensor(indices)
        kept = self.kept[ids.to(self.kept.device, non_blocking=True)]
        if self.device.type == "cuda" and not kept.is_cuda:
            kept = kept.pin_memory()  # from there the GPU copies while it computes
        kept = kept.to(self.device, non_blocking=True)  # the device makes the pixel values, 4 times as many bytes
        ids = ids.to(self.device, non_blocking=True)
        batch = {"pixel_values": self._pixel_values(kept), "ids": ids}
        if self.kept_labels is not None:
            batch["labels"] = self.kept_labels[ids % len(self.images)]
        return batch

    def _pixel_values(self, kept: torch.Tensor) -> torch.Tensor:
        """What is kept of some items, as float32 [B, C, H, W]."""
        if kept.dtype == torch.float32:
            return kept
        # All tables as one, because `index_select` takes a sixth of the time of an index per channel.
        offsets = torch.arange(0, self.tables.numel(), 256, device=kept.device, dtype=torch.int32)
        places = kept.int() + offsets[:, None, None]
        return self.tables.flatten().index_select(0, places.flatten()).view(kept.shape)


def _place(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.device:
    """Where images [I, C, H, W] are kept: on a GPU if they take a quarter of its free memory or less, else in memory.

    There they may take half of what is available, together with those of the other processes on this machine.

    Raises:
        ValueError: where they fit into neither.
    """
    needed = torch.Size(shape).numel() * dtype.itemsize
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
    if needed <= SHARE_OF_GPU * free:
        return device
    num_processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # torchrun and accelerate state it
    available = psutil.virtual_memory().available
    if num_processes * needed <= SHARE_OF_MACHINE * available:
        return torch.device("cpu")
    on_gpu = f"a quarter of the {free / 1e9:.3g} GB free on the GPU, and " if device.type == "cuda" else ""
    raise ValueError(
        f"cache_images needs {needed / 1e9:.3g} GB for {shape[0]} items in each of {num_processes} processes on this "
        f"machine: more than {on_gpu}half of the {available / 1e9:.3g} GB available in memory; leave it out, and let "
        "--dataloader_num_workers processes load the images"
    )


def image_loader(images: ProcessedImages, batch_size: int, **options) -> DataLoader:
    """A loader of images; batches of `CachedImages` are made by indexing, on the device.

    Args:
        images: the images.
        batch_size: images per batch.
        options: further arguments of DataLoader; those about processes that load and pinned memory are without use for
            `CachedImages`, and are left out.
    """
    if not isinstance(images, CachedImages):
        return DataLoader(images, batch_size, **options)
    order = {name: value for name, value in options.items() if name in ("shuffle", "drop_last")}
    return DataLoader(range(len(images)), batch_size, collate_fn=images.batch, **order)  # type: ignore[arg-type]
