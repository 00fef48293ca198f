"""The header of a safetensors file comes from outside: every lie in it is refused by name."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import awd_core as awd
from awd_core.checkpoints.header import read_header
from awd_core.dtypes import DTYPES, Dtype
from tests.helpers import write_raw


def test_every_type_of_the_format_is_known(tmp_path: Path) -> None:
    state = {dtype.name: torch.ones(3, 2).to(dtype.torch) for dtype in DTYPES}
    save_file(state, tmp_path / "all.safetensors")
    found = read_header(tmp_path / "all.safetensors")
    assert {name: str(tensor.dtype) for name, tensor in found.items()} == {n: n for n in state}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_type_is_what_torch_says_it_is(dtype: Dtype) -> None:
    kind = dtype.torch
    assert (dtype.itemsize, dtype.is_float) == (kind.itemsize, kind.is_floating_point)
    if dtype.is_float:
        assert dtype.largest == torch.finfo(kind).max


def entry(shape: list[Any], begin: Any, end: Any, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


ONE_NAME_TWICE = (
    b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
    b'"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}'
)


HALF_A_CHARACTER = b'{"\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (b"{", 0, r"header that is not JSON"),
        (b"\xff\xfe", 0, r"header that is not JSON"),
        (b"[" * 100_000, 0, r"header that is not JSON"),
        ([1, 2], 0, r"header of type list.*a JSON object"),
        (ONE_NAME_TWICE, 8, r"'a' stands in it twice"),
        ({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, 12, r"tensor 'b' overlaps another"),
        ({"a": entry([2], 0, 8), "b": entry([2], 12, 20)}, 20, r"tensor 'b' leaves a hole"),
        ({"a": entry([2], 4, 12)}, 12, r"tensor 'a' leaves a hole"),
        ({"a": entry([3], 0, 8)}, 8, r"8 bytes for tensor 'a' of shape \[3\].*12 bytes"),
        ({"a": entry([-2], 0, 8)}, 8, r"entry .* for tensor 'a'"),
        ({"a": entry([2.0], 0, 8)}, 8, r"entry .* for tensor 'a'"),
        ({"a": entry([True], 0, 4)}, 4, r"entry .* for tensor 'a'"),
        ({"a": entry([2], 8, 0)}, 8, r"-8 bytes for tensor 'a'"),
        ({"a": entry([2**62, 2**62], 0, 8)}, 8, r"8 bytes for tensor 'a'"),
        ({"a": entry([2], 0, 8, "F33")}, 8, r"entry .* for tensor 'a'.*of a supported type"),
        ({"a": {"dtype": "F32"}}, 0, r"entry .* for tensor 'a'"),
        ({"a": 3}, 0, r"entry '3' for tensor 'a'"),
        ({"a": entry([1] * 65, 0, 4)}, 4, r"entry .* for tensor 'a'"),
        ({"a": entry([0, 2**40], 0, 0)}, 0, r"entry .* for tensor 'a'"),
        (
            b'{"\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
            4,
            r"for tensor '.ud800'",
        ),
        (b'{"\xff":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', 4, r"that is not JSON"),
        (('{"a":' * 900 + "1" + "}" * 900).encode(), 0, r"(not JSON|entry .* for tensor 'a')"),
    ],
)
def test_a_header_that_lies_is_refused(
    tmp_path: Path, header: Any, data: int, message: str
) -> None:
    file = write_raw(tmp_path / "x.safetensors", header, bytes(data))
    with pytest.raises(awd.AwdError, match=rf"not a valid safetensors file.*{message}.*Download"):
        read_header(file)


@pytest.mark.parametrize("length", [9, 10**8 + 1, 2**63, 2**64 - 1])
def test_a_header_that_ends_beyond_the_file_is_refused(tmp_path: Path, length: int) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(length.to_bytes(8, "little") + b"{}")
    with pytest.raises(awd.AwdError, match=rf"header of {length:,} bytes in a file of 10 bytes"):
        read_header(file)


def test_a_file_without_tensors_is_valid(tmp_path: Path) -> None:
    assert read_header(write_raw(tmp_path / "x.safetensors", {"__metadata__": {"a": "b"}})) == {}


def test_a_claim_of_a_header_of_40_gb_is_refused_without_reading_it(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    with file.open("wb") as stream:
        stream.write((40 * 10**9).to_bytes(8, "little"))
        stream.truncate(50 * 10**9)  # sparse: takes no space
    with pytest.raises(awd.AwdError, match=r"header of 40,000,000,000 bytes in a file of 50,000"):
        read_header(file)


def test_packed_types_are_refused_as_quantised(tmp_path: Path) -> None:
    header = {"a": entry([4], 0, 2, "F4")}
    file = write_raw(tmp_path / "x.safetensors", header, bytes(2))
    with pytest.raises(awd.AwdError, match=r"quantised.*tensor 'a'.*F4.*quantised from"):
        read_header(file)
