"""The header of a safetensors file: what each tensor is and where its bytes are, checked before anything trusts it.

A file is 8 bytes (the header's length, little-endian), the header (one JSON object: name -> dtype, shape,
data_offsets, and `__metadata__`, strings by name) and the data, which the tensors fill without gap or overlap.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tolbuild.table.errors import FormatError

PREFIX_BYTES = 8
"""Bytes of the header's length at the start of a file."""

MAX_HEADER_BYTES = 100_000_000
"""The format's own bound, so that a damaged length cannot ask for all memory."""

ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
"""Bytes an element of each type of the format."""


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """One tensor of a file.

    dtype: the format's name, such as BF16. start, stop: its bytes, counted from the start of the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensor."""
        return self.stop - self.start

    @property
    def row_bytes(self) -> int:
        """Bytes of one step along the first dimension."""
        return math.prod(self.shape[1:]) * ITEM_BYTES[self.dtype]


def make_header(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> bytes:
    """The start of a file, its length included, whose tensors lie one after another in the order given.

    Args:
        tensors: the format's type and the shape by name.
    """
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + math.prod(shape) * ITEM_BYTES[dtype]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % PREFIX_BYTES)
    return len(text).to_bytes(PREFIX_BYTES, "little") + text


def header_length(prefix: bytes, file_bytes: int, where: str) -> int:
    """Bytes of the header that a file's first 8 bytes announce.

    Raises:
        FormatError: the file is shorter than that, or the length is beyond the format's bound.
    """
    if len(prefix) < PREFIX_BYTES:
        raise FormatError(f"{where} has {file_bytes} bytes; a safetensors file has at least {PREFIX_BYTES}: truncated?")
    length = int.from_bytes(prefix[:PREFIX_BYTES], "little")
    if not 2 <= length <= MAX_HEADER_BYTES:
        raise FormatError(
            f"{where} announces a header of {length:,} bytes; expected 2 to {MAX_HEADER_BYTES:,}: no safetensors file"
        )
    if PREFIX_BYTES + length > file_bytes:
        raise FormatError(f"{where} announces a header of {length:,} bytes but has {file_bytes:,} bytes: truncated?")
    return length


def parse_header(header: bytes, file_bytes: int, where: str) -> dict[str, TensorInfo]:
    """The tensors of a file by name, from its header without the length.

    Raises:
        FormatError: the header is no such JSON, or its offsets do not tile the file's data; the tensor is named.
    """
    try:
        entries = json.loads(header, object_pairs_hook=_without_twins)
    except ValueError as error:
        raise FormatError(f"{where}: the header is no valid JSON: {error}") from error
    if not isinstance(entries, dict):
        raise FormatError(f"{where}: the header is a JSON {type(entries).__name__}; expected an object")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FormatError(f"{where}: __metadata__ must map names to strings")
    data_start = PREFIX_BYTES + len(header)
    infos = {name: _tensor_info(name, entry, data_start, where) for name, entry in entries.items()}
    _check_tiling(infos, data_start, file_bytes, where)
    return infos


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"a name comes twice: {next(name for name in names if names.count(name) > 1)!r}")
    return found


def _tensor_info(name: str, entry: object, data_start: int, where: str) -> TensorInfo:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise FormatError(f"{where}: tensor {name} must have dtype, shape and data_offsets; it is {entry!r:.200}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype not in ITEM_BYTES:
        raise FormatError(f"{where}: tensor {name} has the type {dtype!r}; known ones: {', '.join(ITEM_BYTES)}")
    if not _are_sizes(shape):
        raise FormatError(f"{where}: tensor {name} has the shape {shape!r}; expected a list of sizes")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise FormatError(f"{where}: tensor {name} has data_offsets {offsets!r}; expected [start, stop]")
    start, stop = offsets
    wanted = math.prod(shape) * ITEM_BYTES[dtype]
    if stop - start != wanted:
        raise FormatError(
            f"{where}: tensor {name}, {dtype} {shape}, has {wanted} bytes, but its data_offsets [{start}, {stop}] "
            f"hold {stop - start}"
        )
    return TensorInfo(name=name, dtype=dtype, shape=tuple(shape), start=data_start + start, stop=data_start + stop)


def _are_sizes(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _check_tiling(infos: dict[str, TensorInfo], data_start: int, file_bytes: int, where: str) -> None:
    end, before = data_start, "the header"
    for info in sorted(infos.values(), key=lambda info: (info.start, info.stop)):
        if info.start != end:
            fault = "overlaps" if info.start < end else "leaves a gap after"
            raise FormatError(f"{where}: tensor {info.name} starts at byte {info.start} and {fault} {before}, to {end}")
        end, before = info.stop, info.name
    if end != file_bytes:
        fault = "truncated?" if file_bytes < end else "something was appended"
        raise FormatError(f"{where} has {file_bytes:,} bytes; its header describes {end:,}: {fault}")
