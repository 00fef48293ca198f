"""Random numbers by position: SplitMix64 in plain integers, whatever the cut."""

import numpy as np
import pytest
import torch

from awd_core.random_masks import BITS, stream_key, uniforms

MASK = (1 << 64) - 1


def splitmix64(key: int, n: int) -> list[int]:
    """The first n numbers of the stream that starts at `key`."""
    numbers = []
    for index in range(1, n + 1):
        state = (key + index * 0x9E3779B97F4A7C15) & MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
        numbers.append(state ^ (state >> 31))
    return numbers


def test_the_reference_gives_the_published_numbers() -> None:
    # The stream of seed 1234567, as its author's C code prints it.
    assert splitmix64(1234567, 3) == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


@pytest.mark.parametrize("key", [0, 1, 2**63 - 1, 2**63, 2**64 - 1, stream_key(3, 1, "w")])
def test_numbers_are_the_upper_bits_of_splitmix64(key: int) -> None:
    expected = [(number >> (64 - BITS)) / 2**BITS for number in splitmix64(key, 50)]
    assert uniforms(key, 0, (5, 10)).flatten().tolist() == expected
    assert uniforms(key, 7, (9,)).tolist() == expected[7:16]


def test_every_seed_expert_and_tensor_has_a_stream_of_its_own() -> None:
    keys = {stream_key(s, e, t) for s in range(3) for e in range(3) for t in ("a", "b", "1/a")}
    assert len(keys) == 27
    assert stream_key(0, 0, "layer.weight") == 0x43B2D621C1122708  # never to change


def test_numbers_are_uniform_and_streams_do_not_resemble_each_other() -> None:
    n = 1 << 20
    one, other = (uniforms(stream_key(0, k, "w"), 0, (n,)) for k in range(2))
    counts = torch.histc(one, 64, 0, 1).numpy()
    assert ((counts - n / 64) ** 2 / (n / 64)).sum() < 120  # chi-square of 63 degrees of freedom
    for left, right in ((one, other), (one[1:], one[:-1])):
        assert abs(np.corrcoef(left.numpy(), right.numpy())[0, 1]) < 4 / np.sqrt(n)
