"""Random numbers that are a function of where they stand: (seed, expert, tensor, element).

Nothing is drawn from a stream, so cutting a tensor into pieces, the number of threads and the
device never change a bit. A stream of its own for every (seed, expert, tensor) starts at

    key = first 8 bytes, little-endian, of BLAKE2b("seed/expert/tensor name")

and element i of the flattened tensor has the 64-bit number `mix(key + (i + 1) G)` of SplitMix64
(Steele, Lea, Flood, OOPSLA 2014): integer additions, multiplications modulo 2^64, shifts and
exclusive ors, the same on every device. Its upper 53 bits are the uniform number in [0, 1).
"""

from __future__ import annotations

import hashlib

from awd_core.lazy import torch

GOLDEN = 0x9E3779B97F4A7C15
FIRST_FACTOR = 0xBF58476D1CE4E5B9
SECOND_FACTOR = 0x94D049BB133111EB
BITS = 53


def stream_key(seed: int, expert: int, tensor: str) -> int:
    """Where the stream of one expert and tensor starts, an integer below 2^64."""
    text = f"{seed}/{expert}/{tensor}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def uniforms(
    key: int, offset: int, shape: tuple[int, ...], device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Uniform numbers in [0, 1) of the elements that start at `offset`, float64.

    Args:
        key: From `stream_key`.
        offset: Position of the first element in the flattened tensor.
        shape: Shape of the piece.
        device: Where they are needed.
    """
    n = int(torch.Size(shape).numel())
    state = torch.arange(offset + 1, offset + 1 + n, dtype=torch.int64, device=device)
    # int64 wraps around as uint64 does; only shifts to the right differ, so their sign is cut off.
    state = state * _signed(GOLDEN) + _signed(key)
    state = (state ^ _shifted(state, 30)) * _signed(FIRST_FACTOR)
    state = (state ^ _shifted(state, 27)) * _signed(SECOND_FACTOR)
    state = state ^ _shifted(state, 31)
    return (_shifted(state, 64 - BITS).to(torch.float64) * 2.0**-BITS).reshape(shape)


def _shifted(state: torch.Tensor, by: int) -> torch.Tensor:
    return (state >> by) & ((1 << (64 - by)) - 1)


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number
