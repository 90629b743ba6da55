"""The weight files of a checkpoint behind any URL: headers at once, tensors and row ranges when they are asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tolbuild.checkpoint.header import PREFIX_BYTES, TensorInfo, header_length, parse_header
from tolbuild.table.errors import FormatError, ObjectNotFoundError
from tolbuild.table.store import Store

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

TORCH_DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2, "U16": torch.uint16, "I16": torch.int16, "F16": torch.float16,
    "BF16": torch.bfloat16, "U32": torch.uint32, "I32": torch.int32, "F32": torch.float32, "U64": torch.uint64,
    "I64": torch.int64, "F64": torch.float64,
}  # fmt: skip
"""Torch's type for each of the format's."""

_FIRST_READ_BYTES = 64 * 1024
"""Read together with the header's length: most headers are shorter, so a remote file costs one request, not two."""

_PIECE_BYTES = 8 * 1024 * 1024
"""A large read goes to the store in pieces of this size: bounded memory, and several in flight where that helps."""

_CONCURRENT_READS = 8


class WeightFiles:
    """Tensors by name over the safetensors files of one folder. Safe to use from several threads.

    Args:
        store: the folder.
        files: for each file, the tensors that it holds.
    """

    def __init__(self, store: Store, files: Mapping[str, Mapping[str, TensorInfo]]) -> None:
        self._store = store
        self._files = {name: key for key, infos in files.items() for name in infos}
        self.infos = {name: infos[name] for infos in files.values() for name in sorted(infos)}

    @classmethod
    def open(cls, store: Store) -> WeightFiles:
        """Read the headers of model.safetensors, or of the files that model.safetensors.index.json names.

        Raises:
            ObjectNotFoundError: neither is there, or a file that the index names is not.
            FormatError: a header or the index is damaged, or index and headers disagree; the tensor is named.
        """
        try:
            return cls(store, {WEIGHTS: read_infos(store, WEIGHTS)})
        except ObjectNotFoundError as missing:
            try:
                index = store.read(INDEX)
            except ObjectNotFoundError:
                raise ObjectNotFoundError(f"{store.url} has neither {WEIGHTS} nor {INDEX}") from missing
        return cls._open_indexed(store, _parse_index(index, f"{store.url}/{INDEX}"))

    @classmethod
    def _open_indexed(cls, store: Store, weight_map: Mapping[str, str]) -> WeightFiles:
        keys = sorted(set(weight_map.values()))
        with ThreadPoolExecutor(_CONCURRENT_READS) as pool:
            files = dict(zip(keys, pool.map(lambda key: read_infos(store, key), keys), strict=True))
        held = {(name, key) for key, infos in files.items() for name in infos}
        differing = sorted(held ^ set(weight_map.items()))
        if differing:
            name, key = differing[0]
            fault = "is in the file, not in the index" if (name, key) in held else "is in the index, not in the file"
            raise FormatError(f"{store.url}/{INDEX}: tensor {name} of {key} {fault} ({len(differing)} such in all)")
        return cls(store, files)

    def info(self, name: str) -> TensorInfo:
        """Type, shape and place of a tensor.

        Raises:
            ValueError: there is none of that name.
        """
        if name not in self.infos:
            raise ValueError(f"{self._store.url} has no tensor {name}; it has {', '.join(list(self.infos)[:4])}, ...")
        return self.infos[name]

    def tensor(self, name: str) -> Tensor:
        """A whole tensor in its stored type."""
        info = self.info(name)
        return self._read(info, info.start, info.num_bytes).view(info.shape)

    def tensor_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows `start` up to `stop` of a tensor's first dimension, by one range read.

        Raises:
            ValueError: the range is not within the tensor.
        """
        info = self.info(name)
        count = info.shape[0] if info.shape else 0
        if not 0 <= start <= stop <= count:
            raise ValueError(f"rows {start} to {stop} of {name} were asked for; it has {count}")
        first = info.start + start * info.row_bytes
        return self._read(info, first, (stop - start) * info.row_bytes).view(stop - start, *info.shape[1:])

    def pieces(self, name: str, buffer: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
        """A tensor's bytes in order, as views of `buffer` that hold until the next one."""
        info = self.info(name)
        for start in range(info.start, info.stop, len(buffer)):
            part = buffer[: min(len(buffer), info.stop - start)]
            _read_range(self._store, self._files[name], start, part)
            yield part

    def _read(self, info: TensorInfo, start: int, num_bytes: int) -> Tensor:
        data = torch.empty(num_bytes, dtype=torch.uint8)
        flat, key = data.numpy(), self._files[info.name]
        starts = range(0, num_bytes, _PIECE_BYTES)

        def read(done: int) -> None:
            _read_range(self._store, key, start + done, flat[done : done + _PIECE_BYTES])

        if len(starts) > 1 and self._store.local_path(key) is None:
            with ThreadPoolExecutor(_CONCURRENT_READS) as pool:
                list(pool.map(read, starts))
        else:
            for done in starts:
                read(done)
        return data.view(TORCH_DTYPES[info.dtype])


def read_infos(store: Store, key: str) -> dict[str, TensorInfo]:
    """The tensors of one safetensors file, from its header.

    Raises:
        ObjectNotFoundError: there is no such file.
        FormatError: its header is damaged.
    """
    where, file_bytes = f"{store.url}/{key}", store.size(key)
    head = np.empty(min(file_bytes, _FIRST_READ_BYTES), np.uint8)
    _read_range(store, key, 0, head)
    length = header_length(head[:PREFIX_BYTES].tobytes(), file_bytes, where)
    rest = np.empty(max(0, PREFIX_BYTES + length - len(head)), np.uint8)
    _read_range(store, key, len(head), rest)
    header = head[PREFIX_BYTES : PREFIX_BYTES + length].tobytes() + rest.tobytes()
    return parse_header(header, file_bytes, where)


def _read_range(store: Store, key: str, start: int, out: NDArray[np.uint8]) -> None:
    if len(out):
        store.read_scattered(key, np.array([start], np.int64), [out])


def _parse_index(data: bytes, where: str) -> dict[str, str]:
    try:
        weight_map = json.loads(data)["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{where} is no index of weight files: {error!r}") from error
    if not isinstance(weight_map, dict) or not weight_map:
        raise FormatError(f"{where}: weight_map must map tensors to files")
    for name, key in weight_map.items():
        if not isinstance(key, str) or not key.endswith(".safetensors") or "/" in key:
            raise FormatError(f"{where}: tensor {name} is in {key!r}; expected a .safetensors file beside the index")
    return weight_map
