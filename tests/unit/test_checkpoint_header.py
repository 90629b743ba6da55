"""safetensors headers: what the library writes is read, and every kind of damage is refused by name."""

from __future__ import annotations

import json

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from tolbuild.checkpoint.header import MAX_HEADER_BYTES, header_length, parse_header
from tolbuild.table.errors import FormatError


def as_header(entries: object) -> bytes:
    return json.dumps(entries).encode()


def entry(start: int, stop: int, *, dtype: str = "F32", shape: list[int] | None = None) -> dict[str, object]:
    return {"dtype": dtype, "shape": [(stop - start) // 4] if shape is None else shape, "data_offsets": [start, stop]}


def parse(entries: object, data_bytes: int) -> dict[str, object]:
    header = as_header(entries)
    return dict(parse_header(header, 8 + len(header) + data_bytes, "file"))


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), max_size=6), st.sampled_from(["F32", "BF16", "I64", "U8"])
)
def test_headers_of_the_library_are_read(shapes: list[tuple[int, int]], dtype: str) -> None:
    dtypes = {"F32": torch.float32, "BF16": torch.bfloat16, "I64": torch.int64, "U8": torch.uint8}
    tensors = {f"t{i}": torch.arange(a * b).view(a, b).to(dtypes[dtype]) for i, (a, b) in enumerate(shapes)}
    data = safetensors.torch.save(tensors, metadata={"format": "pt"})
    length = header_length(data[:8], len(data), "file")
    infos = parse_header(data[8 : 8 + length], len(data), "file")
    assert infos.keys() == tensors.keys()
    for name, tensor in tensors.items():
        info = infos[name]
        assert (info.dtype, info.shape) == (dtype, tuple(tensor.shape))
        assert data[info.start : info.stop] == tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize(
    ("prefix", "file_bytes", "message"),
    [
        (b"abc", 3, "has 3 bytes; a safetensors file has at least 8"),
        ((MAX_HEADER_BYTES + 1).to_bytes(8, "little"), 10**12, "announces a header of 100,000,001 bytes"),
        (b"\xff" * 8, 10**12, "announces a header of 18,446,744,073,709,551,615 bytes"),
        ((0).to_bytes(8, "little"), 100, "announces a header of 0 bytes"),
        ((93).to_bytes(8, "little"), 100, "announces a header of 93 bytes but has 100 bytes: truncated"),
    ],
)
def test_a_bad_header_length_is_refused(prefix: bytes, file_bytes: int, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        header_length(prefix, file_bytes, "file")


@pytest.mark.parametrize(
    ("entries", "data_bytes", "message"),
    [
        ({"a": entry(0, 8), "b": entry(4, 12)}, 12, "tensor b starts at byte .* and overlaps a"),
        ({"a": entry(0, 8), "b": entry(0, 8)}, 8, "overlaps a"),
        ({"a": entry(0, 8), "b": entry(12, 16)}, 16, "tensor b starts at byte .* and leaves a gap after a"),
        ({"a": entry(4, 8)}, 8, "tensor a starts .* leaves a gap after the header"),
        ({"a": entry(0, 8)}, 7, "truncated"),
        ({"a": entry(0, 8)}, 9, "something was appended"),
        ({"a": entry(0, 8, shape=[3])}, 8, r"tensor a, F32 \[3\], has 12 bytes, but its data_offsets \[0, 8\] hold 8"),
        ({"a": entry(8, 0, shape=[2])}, 8, "tensor a"),
        ({"a": entry(0, 8, shape=[-1, -2])}, 8, "tensor a has the shape"),
        ({"a": entry(0, 8, dtype="F12")}, 8, "tensor a has the type 'F12'; known ones: BOOL"),
        ({"a": {"dtype": "F32", "shape": [2]}}, 8, "tensor a must have dtype, shape and data_offsets"),
        ({"a": {**entry(0, 8), "data_offsets": [0, 8.0]}}, 8, "tensor a has data_offsets"),
        ({"a": {**entry(0, 8), "data_offsets": [0]}}, 8, "tensor a has data_offsets"),
        ({"__metadata__": {"a": 1}}, 0, "__metadata__ must map names to strings"),
        ([], 0, "expected an object"),
    ],
)
def test_a_damaged_header_is_refused_by_name(entries: object, data_bytes: int, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        parse(entries, data_bytes)


def test_no_json_and_twins_are_refused() -> None:
    with pytest.raises(FormatError, match="no valid JSON"):
        parse_header(b"{\xff}", 11, "file")
    twins = b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'
    with pytest.raises(FormatError, match="a name comes twice: 'a'"):
        parse_header(twins, 8 + len(twins), "file")
