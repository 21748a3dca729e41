"""Classifier values kept for later steps: the classifier is frozen, so a pair (S, v(S)) stays true for ever."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file


class ReplayStore:
    """The last pairs (S, v(S)) of every training image, in memory on one device.

    Bounded: an image holds `capacity` pairs of ceil(N / 8) + 2 K bytes, 16 MB for ImageNette's 9,469 images with 32
    pairs at N = 256; the oldest make room. Values are log-probabilities (with one label the logit) in float16, which
    keep both tails, where probabilities in float16 would lose those near 0. Every process of a distributed run holds
    the same store: each appends what all processes have computed.

    Args:
        num_images: I, images of the training set; an image's id is its row.
        num_patches: N.
        num_labels: K.
        capacity: C, pairs kept an image.
        device: where the store lies.
        key: what the values depend on (images, geometry, masking, classifier): a file with another key is refused.
    """

    def __init__(
        self,
        num_images: int,
        num_patches: int,
        num_labels: int,
        capacity: int,
        device: torch.device | str = "cpu",
        key: dict[str, str] | None = None,
    ):
        self.num_patches, self.capacity = num_patches, capacity
        size = {"num_images": num_images, "num_patches": num_patches, "num_labels": num_labels, "capacity": capacity}
        self.key = {**(key or {}), **{name: str(number) for name, number in size.items()}}
        self._subsets = torch.zeros(num_images, capacity, -(-num_patches // 8), dtype=torch.uint8, device=device)
        self._values = torch.zeros(num_images, capacity, num_labels, dtype=torch.float16, device=device)
        self.written = torch.zeros(num_images, dtype=torch.int64, device=device)  # pairs ever kept
        self._bits = (1 << torch.arange(8, device=device)).to(torch.uint8)

    def append(self, ids: torch.Tensor, subsets: torch.Tensor, logits: torch.Tensor) -> None:
        """Keeps new pairs; an image's oldest go where it holds `capacity` already.

        Args:
            ids: int64 [B], each image once.
            subsets: bool [B, M, N], with M at most `capacity`.
            logits: [B, M, K], v(S) before softmax or sigmoid.
        """
        num_new = subsets.shape[1]
        slots = (self.written[ids, None] + torch.arange(num_new, device=ids.device)) % self.capacity
        padded = torch.nn.functional.pad(subsets, (0, self._subsets.shape[-1] * 8 - self.num_patches))
        self._subsets[ids[:, None], slots] = (padded.unflatten(-1, (-1, 8)) * self._bits).sum(dim=-1, dtype=torch.uint8)
        values = logits if logits.shape[-1] == 1 else logits.float().log_softmax(dim=-1)
        self._values[ids[:, None], slots] = values.clamp(-65504, 65504).half()
        self.written[ids] += num_new

    def pairs(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """All that is kept of these images [B].

        Returns:
            subsets bool [B, C, N]; logits of v(S), float32 [B, C, K]; and which of the C are filled, bool [B, C].
        """
        packed = self._subsets[ids]
        subsets = (packed[..., None] & self._bits).flatten(-2)[..., : self.num_patches] != 0
        filled = torch.arange(self.capacity, device=ids.device) < self.written[ids, None]
        return subsets, self._values[ids].float(), filled

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The store as tensors, for checkpoints and files."""
        return {"subsets": self._subsets, "values": self._values, "written": self.written}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Takes over what `state_dict` gave."""
        for name, own in self.state_dict().items():
            own.copy_(state[name])

    def save(self, file: str | Path) -> None:
        """Writes the store to a safetensors file, its key in the header."""
        partial = Path(f"{file}.partial")
        save_file(self.state_dict(), partial, metadata=self.key)
        partial.replace(file)

    def load(self, file: str | Path) -> None:
        """Takes over the pairs of a file that `save` wrote.

        Raises:
            ValueError: where the file is of a store with another key, or with another number of images or pairs.
        """
        if not Path(file).is_file():
            raise ValueError(f"replay store {str(file)!r} is not a file")
        try:
            with safe_open(file, framework="pt", device=str(self.written.device)) as stored:
                found: dict[str, Any] = stored.metadata() or {}
                state = {name: stored.get_tensor(name) for name in self.state_dict()}
        except SafetensorError as error:
            raise ValueError(f"replay store {str(file)!r} cannot be read: {error}") from error
        changed = {name: (found.get(name), now) for name, now in self.key.items() if found.get(name) != now}
        if changed:
            raise ValueError(f"replay store {str(file)!r} holds values of something else (there, here): {changed}")
        self.load_state_dict(state)
