"""Rows of the steps: requested as soon as token ids are known, waited for band by band, charged to requests.

A step's distinct ids are looked for in what was requested ahead (prompt chunks during the step before, sampled tokens
at its end); what is missing is requested when the step starts. A pure decode step usually finds exactly its ids in one
request, whose rows are then used where they arrived.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tolbuild.table.errors import ToLError
from tolserve.engine.request import MemoryCharge

IntArray = NDArray[np.int64]

_TORCH_DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
    "int8": torch.int8,
}


class Bill(Protocol):
    """What a source says of one request for rows; see `MemoryCharge`."""

    hits_by_tier: Mapping[str, int]
    bytes_moved: int
    fetch_ms: float


class Source(Protocol):
    """Where rows come from (`tolserve.memory`): start early, wait where a band is needed, release when used."""

    @property
    def spec(self) -> Any:
        """`RowSpec`: bands, vocab_size, identity."""

    def start(self, token_ids: IntArray, *, bands: tuple[int, ...] | None = None) -> Any:
        """Request rows of distinct ids; returns a handle that carries `bill`."""

    def wait(self, handle: Any, band: int) -> Any:
        """Codes [ids, columns] of a band, valid until `release`."""

    def release(self, handle: Any) -> None:
        """Let the buffers be used again."""


def codes_tensor(codes: Any, dtype: str) -> Tensor:
    """What a source returned as a tensor [n, columns] of the band's type, without a copy."""
    tensor = codes if isinstance(codes, Tensor) else torch.from_numpy(codes)
    wanted = _TORCH_DTYPES[dtype]
    return tensor if tensor.dtype == wanted else tensor.view(wanted)


@dataclass(kw_only=True)
class _Request:
    ids: IntArray
    handle: Any
    stall_ms: float = 0.0


@dataclass(frozen=True, kw_only=True)
class StepRows:
    """Rows of one step: the requests they lie in, and for each token its place among their rows taken together."""

    requests: list[_Request]
    row_index_N: IntArray
    num_unique: int


@dataclass(kw_only=True)
class RowTotals:
    """Rows since the engine was made, for metrics."""

    rows_needed: int = 0
    rows_unique: int = 0
    bytes_moved: float = 0.0
    fetch_ms: float = 0.0
    stall_ms: float = 0.0
    hits_by_tier: dict[str, int] = field(default_factory=dict)


class RowFeed:
    """Requests and receives the rows of steps from one source. At most two requests are ahead at a time, each for no
    more ids than a step has tokens: that bounds the staging buffers."""

    def __init__(self, source: Source, bands: tuple[int, ...]) -> None:
        self._source = source
        self._bands = bands
        self._layouts = {band.index: (sum(band.ranks), str(band.dtype)) for band in source.spec.bands}
        self._ahead: dict[str, _Request] = {}
        self.totals = RowTotals()

    def layout(self, band: int) -> tuple[int, torch.dtype]:
        """Columns and type of a band's codes."""
        columns, dtype = self._layouts[band]
        return columns, _TORCH_DTYPES[dtype]

    def fetch_ahead(self, kind: str, token_ids: list[int]) -> None:
        """Request rows that the next step will probably need; a request of the same kind not used is replaced.

        A fault is left to the step that needs the rows.
        """
        stale = self._ahead.pop(kind, None)
        if stale is not None:
            self._source.release(stale.handle)
        ids = np.unique(np.array(token_ids, np.int64))
        for other in self._ahead.values():
            ids = ids[~np.isin(ids, other.ids, assume_unique=True)]
        if len(ids):
            with contextlib.suppress(ToLError):
                self._ahead[kind] = self._request(ids)

    def begin(self, token_ids_N: IntArray) -> StepRows:
        """Gather a step's requests: those ahead that have some of its rows, and one for the rest."""
        unique, inverse_N = np.unique(token_ids_N, return_inverse=True)
        place = np.full(len(unique), -1, np.int64)
        used: list[str] = []
        offset = 0
        for kind, request in self._ahead.items():
            found = np.minimum(np.searchsorted(request.ids, unique), len(request.ids) - 1)
            hit = (request.ids[found] == unique) & (place < 0)
            if hit.any():
                place[hit] = found[hit] + offset
                used.append(kind)
                offset += len(request.ids)
        missing = place < 0
        fresh = [self._request(unique[missing])] if missing.any() else []
        place[missing] = np.arange(int(missing.sum())) + offset
        requests = [self._ahead.pop(kind) for kind in used] + fresh
        return StepRows(requests=requests, row_index_N=place[inverse_N], num_unique=len(unique))

    def wait(self, handle: Any, band: int) -> Any:
        """Codes [ids, columns] of a band, valid until `release`."""

    def release(self, handle: Any) -> None:
        """Let the buffers be used again."""


def codes_tensor(codes: Any, dtype: str) -> Tensor:
    """What a source returned as a tensor [n, columns] of the band's type, without a copy."""
    tensor = codes if isinstance(codes, Tensor) else torch.from_numpy(codes)
    wanted = _TORCH_DTYPES[dtype]
    return tensor if tensor.dtype == wanted else tensor.view(wanted)


@dataclass(kw_only=True)
class _Request:
    ids: IntArray
    handle: Any
    stall_ms: float = 0.0


@dataclass(frozen=True, kw_only=True)
class StepRows:
    """Rows of one step: the requests they lie in, and for each token its place among their rows taken together."""

    requests: list[_Request]
    row_index_N: IntArray
    num_unique: int


@dataclass(kw_only=True)
class RowTotals:
    """Rows since the engine was made, for metrics."""

    rows_needed: int = 0
    rows_unique: int = 0
    bytes_moved: float = 0.0
    fetch_ms: float = 0.0
    stall_ms: float = 0.0
    hits_by_tier: dict[str, int] = field(default_factory=dict)


class RowFeed:
    """Requests and receives the rows of steps from one source. At most two requests are ahead at a time, each for no
    more ids than a step has tokens: that bounds the staging buffers."""

    def __init__(self, source: Source, bands: tuple[int, ...]) -> None:
        self._source = source
        self._bands = bands
        self._layouts = {band.index: (sum(band.ranks), str(band.dtype)) for band in source.spec.bands}
        self._ahead: dict[str, _Request] = {}
        self.totals = RowTotals()

    def layout(self, band: int) -> tuple[int, torch.dtype]:
        """Columns and type of a band's codes."""
        columns, dtype = self._layouts[band]
        return columns, _TORCH_DTYPES[dtype]

    def fetch_ahead(self, kind: str, token_ids: list[int]) -> None:
        """Request rows that the next step will probably need; a request of the same kind not used is replaced."""
        ids = np.unique(np.array(token_ids, np.int64))
        for other in self._ahead.values():
            ids = ids[~np.isin(ids, other.ids, assume_unique=True)]
        stale = self._ahead.pop(kind, None)
        if stale is not None:
            self._source.release(stale.handle)
        if len(ids):
            self._ahead[kind] = self._request(ids)

    def begin(self, token_ids_N: IntArray) -> StepRows:
        """Gather a step's requests: those ahead that have some of its rows, and one for the rest."""
        unique, inverse_N = np.unique(token_ids_N, return_inverse=True)
        place = np.full(len(unique), -1, np.int64)
        requests: list[_Request] = []
        offset = 0
        for kind, request in list(self._ahead.items()):
            found = np.minimum(np.searchsorted(request.ids, unique), len(request.ids) - 1)
            hit = (request.ids[found] == unique) & (place < 0)
            if not hit.any():
                continue
            place[hit] = found[hit] + offset
            requests.append(self._ahead.pop(kind))
            offset += len(request.ids)
        missing = place < 0
        if missing.any():
            requests.append(self._request(unique[missing]))
            place[missing] = np.arange(int(missing.sum())) + offset
        return StepRows(requests=requests, row_index_N=place[inverse_N], num_unique=len(unique))

    def wait(self, rows: StepRows, band: int) -> Tensor:
        """Codes [rows, columns] of a band, in host or device memory as the source has them."""
        parts = []
        for request in rows.requests:
            began = time.perf_counter()
            codes = self._source.wait(request.handle, band)
            request.stall_ms += (time.perf_counter() - began) * 1e3
            parts.append(codes_tensor(codes, self._layouts[band][1]))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def charge(self, rows: StepRows, num_tokens: int) -> MemoryCharge:
        """What a step's rows cost all its requests together; called once, before `release`."""
        bills: list[Bill] = [request.handle.bill for request in rows.requests]
        hits: dict[str, float] = {}
        for bill in bills:
            for tier, count in bill.hits_by_tier.items():
                hits[tier] = hits.get(tier, 0) + count
                self.totals.hits_by_tier[tier] = self.totals.hits_by_tier.get(tier, 0) + count
        charge = MemoryCharge(
            rows_needed=num_tokens,
            rows_unique=rows.num_unique,
            hits_by_tier=hits,
            bytes_moved=sum(bill.bytes_moved for bill in bills),
            fetch_ms=max((bill.fetch_ms for bill in bills), default=0.0),
            stall_ms=sum(request.stall_ms for request in rows.requests),
        )
        for name in ("rows_needed", "rows_unique", "bytes_moved", "fetch_ms", "stall_ms"):
            setattr(self.totals, name, getattr(self.totals, name) + getattr(charge, name))
        return charge

    def release(self, rows: StepRows) -> None:
        """Let the buffers of a step's rows be used again."""
        for request in rows.requests:
            self._source.release(request.handle)
        rows.requests.clear()

    def close(self) -> None:
        """Release what was requested ahead; the source stays open."""
        for request in self._ahead.values():
            self._source.release(request.handle)
        self._ahead.clear()

    def _request(self, ids: IntArray) -> _Request:
        return _Request(ids=ids, handle=self._source.start(ids, bands=self._bands))


def share_charge(step: MemoryCharge, token_ids: IntArray) -> MemoryCharge:
    """One request's part of a step's charge, by the tokens it had in it."""
    share = len(token_ids) / step.rows_needed
    return MemoryCharge(
        rows_needed=len(token_ids),
        rows_unique=len(np.unique(token_ids)) if len(token_ids) > 1 else 1,
        hits_by_tier={tier: count * share for tier, count in step.hits_by_tier.items()},
        bytes_moved=step.bytes_moved * share,
        fetch_ms=step.fetch_ms,
        stall_ms=step.stall_ms,
    )
