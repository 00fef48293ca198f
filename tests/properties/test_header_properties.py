"""No bytes make the reader of headers do anything but read or refuse."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save

import awd_core as awd
from awd_core.checkpoints.header import read_header, read_rows
from tests.helpers import write_raw

names = st.text(min_size=1, max_size=4)
numbers = st.integers(-3, 40) | st.sampled_from([2**31, 2**62, 2**63, 2**64, 1.5, "8", None, True])
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "I8", "BOOL", "F33", 3]),
        "shape": st.lists(numbers, max_size=3),
        "data_offsets": st.lists(numbers, max_size=3),
    }
)
headers = st.dictionaries(names, entries | st.integers() | st.none(), max_size=3)
shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("headers") / "x.safetensors"


def read_or_refuse(file: Path) -> None:
    """Whatever is read lies inside the file; anything else is an `AwdError`."""
    try:
        tensors = read_header(file)
    except awd.AwdError:
        return
    for tensor in tensors.values():
        assert 0 <= tensor.offset <= tensor.offset + tensor.n_bytes <= file.stat().st_size
        read_rows(tensor, 0, tensor.matrix_shape[0])


@given(content=st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    read_or_refuse(file)


@given(header=headers, data=st.binary(max_size=40))
def test_any_header_is_read_or_refused(file: Path, header: dict[str, Any], data: bytes) -> None:
    write_raw(file, header, data)
    read_or_refuse(file)


@given(raw=st.binary(max_size=40), length=st.integers(0, 2**64 - 1))
def test_any_claimed_length_is_read_or_refused(file: Path, raw: bytes, length: int) -> None:
    file.write_bytes(length.to_bytes(8, "little") + raw)
    read_or_refuse(file)


@given(shapes=st.dictionaries(names, shapes, max_size=4), at=st.integers(0), bit=st.integers(0, 7))
def test_a_flipped_bit_is_read_or_refused(
    file: Path, shapes: dict[str, tuple[int, ...]], at: int, bit: int
) -> None:
    raw = bytearray(save({name: torch.ones(shape) for name, shape in shapes.items()}))
    raw[at % len(raw)] ^= 1 << bit
    file.write_bytes(raw)
    read_or_refuse(file)


@given(shapes=st.dictionaries(names, shapes, max_size=4))
def test_whatever_safetensors_writes_is_read_alike(
    file: Path, shapes: dict[str, tuple[int, ...]]
) -> None:
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    file.write_bytes(save(state))
    found = read_header(file)
    assert {name: tensor.shape for name, tensor in found.items()} == shapes
    for name, tensor in load_file(file).items():
        stored = found[name]
        assert torch.equal(
            read_rows(stored, 0, stored.matrix_shape[0]).reshape(shapes[name]), tensor
        )


@given(header=headers)
def test_a_header_that_names_a_tensor_twice_is_refused(file: Path, header: dict[str, Any]) -> None:
    inner = json.dumps(header)[1:-1]
    write_raw(file, f'{{"a": 1, {inner + "," if inner else ""} "a": 1}}'.encode())
    with pytest.raises(awd.AwdError, match="stands in it twice"):
        read_header(file)
