"""Random numbers that depend on a seed, a purpose and an image, and on nothing else.

Every use of random numbers has a stream of its own, selected by name: "training subsets", "order of equal patches", and
so on. Two uses can therefore never draw the same numbers by accident, and neither the batch size, the order of the
images nor the number of processes changes what an image draws.
"""

import hashlib

import torch

from .tensors import whole_number, whole_numbers


class KeyedGenerator:
    """Random numbers that image b draws from (stream, numbers, keys[b]) alone.

    A counter-based generator: number j of image b is a hash of (stream, numbers, keys[b], j). Successive calls draw
    fresh numbers.

    Args:
        stream: what the numbers are for; every use of random numbers has a name of its own.
        numbers: integers that select a part of the stream, say a seed and a step; they fit into 64 bits.
        keys: int64 [B], one per image; the numbers are made on its device.

    Raises:
        ValueError: where a number or a key is no whole number, or a number is too large.

    Examples:
        >>> generator = KeyedGenerator("my method", 0, keys=torch.tensor([7, 8]))
        >>> generator.uniform(3).shape
        torch.Size([2, 3])
    """

    def __init__(self, stream: str, *numbers: int, keys: torch.Tensor):
        keys = whole_numbers("keys", keys, "B")
        self.device = keys.device
        name = int.from_bytes(hashlib.sha256(stream.encode()).digest()[:8], "little")
        self._state = _mix(keys * _signed(_GOLDEN))
        for part in (name, *map(checked_seed, numbers)):
            self._state = _mix(self._state + _signed((part + 1) * _GOLDEN))
        self._drawn = 0

    @property
    def num_images(self) -> int:
        """B, the number of keys."""
        return len(self._state)

    def uniform(self, *shape: int) -> torch.Tensor:
        """Uniform numbers in the open interval (0, 1): float32 [B, *shape]."""
        count = torch.Size(shape).numel()
        counter = torch.arange(self._drawn, self._drawn + count, device=self.device)
        self._drawn += count
        bits = _mix(self._state[:, None] + _mix(counter * _signed(_GOLDEN)))  # [B, count]
        return ((_shift_right(bits, 41).double() + 0.5) * 2.0**-23).float().reshape(len(self._state), *shape)

    def normal(self, *shape: int) -> torch.Tensor:
        """Standard normal numbers: float32 [B, *shape]."""
        return (2 * self.uniform(*shape) - 1).erfinv() * 2**0.5


def checked_seed(seed: int) -> int:
    """A seed; raises ValueError where it is no whole number of 64 bits, because two of these would draw the same."""
    if not -(2**63) <= whole_number("seed", seed) < 2**63:
        raise ValueError(f"seed must fit into 64 bits, got {seed}")
    return int(seed)


def image_keys(pixel_values: torch.Tensor) -> torch.Tensor:
    """A key per image from its pixels, int64 [B]: equal images have equal keys in any batch."""
    bits = pixel_values.detach().float().contiguous().view(torch.int32).flatten(1).to(torch.int64)
    position = torch.arange(bits.shape[1], device=bits.device) * _signed(_GOLDEN)
    return _mix(bits + position).sum(dim=1)


#: 2^64 divided by the golden ratio, the increment of SplitMix64.
_GOLDEN = 0x9E3779B97F4A7C15


def _signed(value: int) -> int:
    """An unsigned 64-bit number as the int64 with the same bits, because torch computes with int64."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def _shift_right(x: torch.Tensor, bits: int) -> torch.Tensor:
    """A right shift that fills with zeros; torch's own fills with the sign bit."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: torch.Tensor) -> torch.Tensor:
    """The finaliser of SplitMix64 (Steele et al., 2014), on int64 with wrap-around."""
    x = (x ^ _shift_right(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift_right(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift_right(x, 31)
