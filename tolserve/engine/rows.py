"""Rows of the steps: requested as soon as token ids are known, waited for band by band, charged to requests.

A step's distinct ids are looked for in what was requested ahead (prompt chunks during the step before, sampled tokens
at its end); what is missing is requested when the step starts. Rows are read where the source put them.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tolbuild.compress.packing import item_type
from tolbuild.table.coding import RowCoding
from tolbuild.table.errors import ToLError
from tolserve.engine.request import MemoryCharge
from tolserve.memory.bill import MemoryBill
from tolserve.memory.source import CachingSource, RowSource
from tolserve.native.lookups import lookups

IntArray = NDArray[np.int64]

_GUESS = "guess"
"""The kind of a request made by guess, and the tier of its rows that a step needed."""


def codes_tensor(rows: Any, coding: RowCoding) -> Tensor:
    """A source's bytes [rows, row_bytes] as a tensor of rows as stored [rows, num_items], without a copy."""
    tensor = rows if isinstance(rows, Tensor) else torch.from_numpy(rows)
    return tensor.view(item_type(coding))


@dataclass(frozen=True, kw_only=True)
class _Request:
    ids: IntArray
    handle: Any


@dataclass(frozen=True, kw_only=True)
class _Guess:
    """A request made by guess and how many of its rows the step needs; none, and it is not among the step's."""

    request: _Request
    num_needed: int


@dataclass(frozen=True, kw_only=True)
class StepRows:
    """Rows of one step: the requests for them, and for each token the place of its row in the source's pools."""

    requests: list[_Request]
    row_index_N: NDArray[np.integer[Any]]
    num_unique: int
    guess: _Guess | None = None


@dataclass(kw_only=True)
class RowTotals:
    """Rows since the engine was made, for metrics."""

    rows_needed: int = 0
    rows_unique: int = 0
    rows_guessed: float = 0.0
    guess_bytes: float = 0.0
    bytes_moved: float = 0.0
    fetch_ms: float = 0.0
    stall_ms: float = 0.0
    hits_by_tier: dict[str, float] = field(default_factory=dict)


class RowFeed:
    """Requests and receives the rows of steps from one source. At most two requests are ahead at a time, each for no
    more ids than a step has tokens, and one made by guess: that bounds the staging buffers.
    """

    def __init__(self, source: RowSource, bands: tuple[int, ...]) -> None:
        self._source = source
        self._bands = bands
        self._codings = {band.index: band.coding for band in source.spec.bands}
        self._ahead: dict[str, _Request] = {}
        self._lookups = lookups()
        self._pools: dict[int, Tensor] = {}
        self.totals = RowTotals()

    def layout(self, band: int) -> tuple[int, torch.dtype]:
        """Items of a band's row as stored, and their type."""
        return self._codings[band].num_items, item_type(self._codings[band])

    def fetch_ahead(self, kind: str, token_ids: list[int]) -> None:
        """Request rows that the next step will probably need; a request of the same kind not used is replaced.

        A fault is left to the step that needs the rows.
        """
        stale = self._ahead.pop(kind, None)
        if stale is not None:
            self._source.release(stale.handle)
        self._request_ahead(kind, self._not_ahead(np.array(token_ids, np.int64)))

    def guess(self, token_ids: IntArray) -> None:
        """Request those of the rows that are absent, once between two steps; the source is a `CachingSource`."""
        assert isinstance(self._source, CachingSource)
        assert _GUESS not in self._ahead
        self._request_ahead(_GUESS, self._source.absent(self._not_ahead(token_ids)))

    def _not_ahead(self, token_ids: IntArray) -> IntArray:
        ids = self._lookups.distinct(token_ids)
        for other in self._ahead.values():
            ids = ids[~np.isin(ids, other.ids, assume_unique=True)]
        return ids

    def _request_ahead(self, kind: str, ids: IntArray) -> None:
        if len(ids):
            with contextlib.suppress(ToLError):
                self._ahead[kind] = self._request(ids)

    def begin(self, token_ids_N: IntArray) -> StepRows:
        """Gather a step's requests: those ahead that have some of its rows, and one for the rest.

        What was requested by guess and is not needed is let go.
        """
        guessed = self._ahead.get(_GUESS)
        rows = self._begin_with_the_one_ahead(token_ids_N) or self._begin_with_any(token_ids_N)
        if guessed is None:
            return rows
        if self._ahead.pop(_GUESS, None) is not None:
            self._source.release(guessed.handle)
        num_needed = int(np.count_nonzero(np.isin(guessed.ids, token_ids_N)))
        return replace(rows, guess=_Guess(request=guessed, num_needed=num_needed))

    def _begin_with_the_one_ahead(self, token_ids_N: IntArray) -> StepRows | None:
        """The usual decode step, whose tokens were requested when they were sampled; None for any other."""
        if len(self._ahead) != 1:
            return None
        ((kind, request),) = self._ahead.items()
        matched = self._lookups.match(request.ids, request.handle.index, token_ids_N)
        if matched is None:
            return None
        del self._ahead[kind]
        return StepRows(requests=[request], row_index_N=matched[0], num_unique=matched[1])

    def _begin_with_any(self, token_ids_N: IntArray) -> StepRows:
        unique, inverse_N = np.unique(token_ids_N, return_inverse=True)
        place = np.full(len(unique), -1, np.int64)
        used: list[str] = []
        for kind, request in self._ahead.items():
            found = np.minimum(np.searchsorted(request.ids, unique), len(request.ids) - 1)
            hit = (request.ids[found] == unique) & (place < 0)
            if hit.any():
                place[hit] = request.handle.index[found[hit]]
                used.append(kind)
        missing = place < 0
        fresh = [self._request(unique[missing])] if missing.any() else []
        for request in fresh:
            place[missing] = request.handle.index
        requests = [self._ahead.pop(kind) for kind in used] + fresh
        return StepRows(requests=requests, row_index_N=place[inverse_N], num_unique=len(unique))

    def wait(self, rows: StepRows, band: int) -> Tensor:
        """The source's pool [rows, num_items] of a band once the step's rows are in it, in host or device memory."""
        for request in rows.requests:
            self._source.arrive(request.handle, band)
        pool = self._pools.get(band)
        if pool is None:
            pool = self._pools[band] = codes_tensor(self._source.pool(band), self._codings[band])
        return pool

    def charge(self, rows: StepRows, num_tokens: int) -> MemoryCharge:
        """What a step's rows cost all its requests together; called once, before `release`."""
        guess = rows.guess
        asked = [request for request in rows.requests if guess is None or request is not guess.request]
        bills: list[MemoryBill] = [request.handle.bill for request in asked]
        hits: dict[str, float] = {}
        for bill in bills:
            for tier, count in bill.hits_by_tier.items():
                hits[tier] = hits.get(tier, 0) + count
        if guess is not None:
            bills.append(guess.request.handle.bill)
            hits[_GUESS] = guess.num_needed
            self.totals.guess_bytes += bills[-1].bytes_moved
        for tier in hits:
            self.totals.hits_by_tier[tier] = self.totals.hits_by_tier.get(tier, 0) + hits[tier]
        charge = MemoryCharge(
            rows_needed=num_tokens,
            rows_unique=rows.num_unique,
            rows_guessed=0.0 if guess is None else float(len(guess.request.ids)),
            hits_by_tier=hits,
            bytes_moved=sum(bill.bytes_moved for bill in bills),
            fetch_ms=max((bill.fetch_ms for bill in bills), default=0.0),
            stall_ms=sum(bill.stall_ms for bill in bills),
        )
        for name in ("rows_needed", "rows_unique", "rows_guessed", "bytes_moved", "fetch_ms", "stall_ms"):
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
