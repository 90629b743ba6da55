"""What one worker does for one cell: read its slice of the checkpoint, compute, and leave the result in the store.

A worker knows the plan and the addresses, nothing of other workers. Its memory depends on the model's width and the
shard size, not on V. Computing holds one of its lanes; reading before it and uploading after it do not, so a worker
that is given two cells at a time computes one while the other is on its way.
"""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tolbuild.checkpoint import Digests, open_checkpoint
from tolbuild.config import ModelConfig
from tolbuild.grid import Cell, FitCell, PartialCell, RanksCell, ScaleCell, ShardCell, SumCell
from tolbuild.plan import Plan
from tolbuild.table.errors import IdentityError, ObjectNotFoundError, TableCorruptError
from tolbuild.table.store import Credentials, open_store
from tolbuild.table.writer import write_shard
from tolbuild.worker.cache import Cache
from tolbuild.worker.cells import fit_codes, fit_layer, shard_codes, sum_segment
from tolbuild.worker.encode import LayerFit
from tolbuild.worker.heap import return_large_blocks
from tolbuild.worker.partials import pack, partial_key, unpack, weights_key
from tolbuild.worker.ranks import choose_ranks, cut_fit
from tolbuild.worker.row_source import RowSource
from tolbuild.worker.spool import Spool
from tolbuild.worker.table_spec import table_spec

IN_FLIGHT = 2
"""Cells a worker is given at a time: it computes one while the other reads or uploads, and memory stays bounded."""


@dataclass(frozen=True, kw_only=True)
class CellReport:
    """What one finished cell took; its result is in the store."""

    cell: Cell
    worker: str
    num_rows: int = 0
    compute_s: float
    transfer_s: float
    written_bytes: int
    spooled_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class WorkOrder:
    """Everything a worker needs to know, small enough to send anywhere.

    model, digests: of the checkpoint that the plan was made from. rows: how pass 2 gets the rows of pass 1. run: name
    of this run, equal for all its workers. spool_bytes: the most that spooled rows may take on a machine.
    """

    plan: Plan
    checkpoint: str
    model: ModelConfig
    digests: Digests
    table: str
    credentials: Credentials | None
    device: str
    rows: str
    run: str
    spool_dir: Path | None
    spool_bytes: int


def pick_device(name: str) -> torch.device:
    """The device of `--device`: auto takes a GPU where this process sees one.

    Raises:
        ValueError: cuda was asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda, but this worker sees no GPU; use --device auto or cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


class Worker:
    """Does cells, `lanes` of them computing at a time; `run` may be called from several threads.

    Raises:
        ValueError: no GPU where one is asked for.
        ToLError: the checkpoint cannot be opened. (That it is another than the plan's is found when it is read.)
    """

    def __init__(self, order: WorkOrder, *, lanes: int = 1) -> None:
        return_large_blocks()
        plan = self._plan = order.plan
        device = pick_device(order.device)
        self._stop = threading.Event()
        self._store = open_store(order.table, order.credentials)
        spools = plan.needs_sums and (order.rows == "spool" or (order.rows == "auto" and device.type == "cpu"))
        self._spool = Spool(order.spool_dir, order.run, order.spool_bytes if spools else 0)
        widest_band = max(len(band.layers) for band in plan.bands)
        checkpoint = open_checkpoint(order.checkpoint, credentials=order.credentials, expected=order.digests)
        if checkpoint.config != order.model:
            raise IdentityError(
                f"config.json of {order.checkpoint} as {socket.gethostname()} reads it is not that of the checkpoint "
                "which the plan was made from; give all workers the same one and run again"
            )
        held = lanes if spools else lanes * widest_band
        weights_V = self._read(weights_key(plan))["weights"] if plan.weights else None
        self._source = RowSource(plan, checkpoint, device, held, self._stop, weights_V)
        self._allocated: Cache[Plan] = Cache(lambda _: self._load_plan(), 1)
        self._fits: Cache[LayerFit] = Cache(self._load_fit, lanes * widest_band)
        self._buffers: queue.SimpleQueue[Tensor] = queue.SimpleQueue()
        for _ in range(lanes):
            self._buffers.put(self._new_buffer())

    def run(self, cell: Cell, worker: str) -> CellReport:
        """Do one cell; when this returns, its result is durable.

        Raises:
            Stopped: `stop` was called.
            ToLError: the store or the checkpoint failed.
        """
        torch.set_num_threads(1)
        if isinstance(cell, ShardCell):
            return self._run_shard(cell, worker)
        if isinstance(cell, SumCell):
            return self._run_sum(cell, worker)
        return self._run_partial(cell, worker)

    def stop(self) -> None:
        """Make running cells end at their next chunk."""
        self._stop.set()

    def close(self) -> None:
        """Give back threads, connections and the spool."""
        self._source.close()
        self._spool.close()
        self._store.close()

    def _new_buffer(self) -> Tensor:
        return torch.empty((self._plan.chunk_rows, self._plan.hidden_size), device=self._source.device)

    @contextmanager
    def _lane(self) -> Iterator[Tensor]:
        """A turn at computing, with the turn's row buffer [chunk_rows, D]."""
        buffer_ND = self._buffers.get()
        try:
            yield buffer_ND
        finally:
            self._buffers.put(buffer_ND)

    def _run_sum(self, cell: SumCell, worker: str) -> CellReport:
        with self._lane() as buffer_ND:
            began = time.perf_counter()
            sums, spooled = sum_segment(self._source, self._spool, cell, buffer_ND)
            computed = time.perf_counter()
        written = self._write(cell, sums)
        return CellReport(
            cell=cell,
            worker=worker,
            num_rows=len(self._plan.segments[cell.segment]),
            compute_s=computed - began,
            transfer_s=time.perf_counter() - computed,
            written_bytes=written,
            spooled_bytes=spooled,
        )

    def _run_partial(self, cell: FitCell | RanksCell | ScaleCell, worker: str) -> CellReport:
        with self._lane() as buffer_ND:
            began = time.perf_counter()
            result = self._make(cell, buffer_ND)
            computed = time.perf_counter()
        written = self._write(cell, result)
        return CellReport(
            cell=cell,
            worker=worker,
            compute_s=computed - began,
            transfer_s=time.perf_counter() - computed,
            written_bytes=written,
        )

    def _make(self, cell: PartialCell, buffer_ND: Tensor) -> dict[str, Tensor]:
        """The result of a cell from those that it needs."""
        if isinstance(cell, SumCell):
            return sum_segment(self._source, self._spool, cell, buffer_ND)[0]
        if isinstance(cell, RanksCell):
            return choose_ranks(self._plan, lambda layer: self._partial(FitCell(layer), buffer_ND))
        count = len(self._plan.segments) if self._plan.needs_sums else 0
        parts = [self._partial(SumCell(cell.layer, segment), buffer_ND) for segment in range(count)]
        if isinstance(cell, ScaleCell):
            sample_ND = torch.cat([part["sample"] for part in parts]).to(self._source.device)
            return fit_codes(self._allocated(0), sample_ND, self._fit(cell.layer, buffer_ND).basis)
        return fit_layer(self._source, cell.layer, parts, buffer_ND)

    def _run_shard(self, cell: ShardCell, worker: str) -> CellReport:
        plan, span = self._allocated(0), self._plan.shard_range(cell.shard)
        asked = time.perf_counter()
        embedding: list[Tensor] = [] if self._spool.keeps else [self._source.embedding(span)]
        read_s = time.perf_counter() - asked

        def embedding_ND() -> Tensor:
            if not embedding:
                embedding.append(self._source.embedding(span))
            return embedding[0]

        with self._lane() as buffer_ND:
            began = time.perf_counter()
            layers = plan.bands[cell.band].layers
            spec = table_spec(plan, [layer for layer in layers if self._fits(layer).by_token])
            codes_NI, errors = shard_codes(
                plan, self._source, self._spool, self._fits, cell, spec.bands[cell.band], embedding_ND, buffer_ND
            )
            computed = time.perf_counter()
        receipt = write_shard(self._store, spec, cell.band, cell.shard, codes_NI, errors)
        for layer in layers:
            for piece in span.steps(plan.chunk_rows):
                self._spool.drop(layer, piece.start)
        return CellReport(
            cell=cell,
            worker=worker,
            num_rows=len(span) * len(layers),
            compute_s=computed - began,
            transfer_s=read_s + time.perf_counter() - computed,
            written_bytes=receipt.codes.size,
        )

    def _write(self, cell: PartialCell, tensors: dict[str, Tensor]) -> int:
        data = pack(tensors)
        self._store.write(partial_key(self._plan, cell), data)
        return len(data)

    def _read(self, key: str) -> dict[str, Tensor]:
        return unpack(self._store.read(key), key)

    def _partial(self, cell: PartialCell, buffer_ND: Tensor | None = None) -> dict[str, Tensor]:
        """What a cell left; made again when it was lost or damaged."""
        try:
            return self._read(partial_key(self._plan, cell))
        except (ObjectNotFoundError, TableCorruptError):
            result = self._make(cell, self._new_buffer() if buffer_ND is None else buffer_ND)
            self._write(cell, result)
            return result

    def _load_plan(self) -> Plan:
        """The plan with the ranks that pass 1 has found."""
        if self._plan.allocated:
            return self._plan
        return self._plan.with_ranks(self._partial(RanksCell())["ranks"].tolist())

    def _load_fit(self, layer: int) -> LayerFit:
        if not self._plan.needs_fit:
            return LayerFit()
        scales = self._partial(ScaleCell(layer)) if self._plan.scale_cells() else {}
        return self._fit(layer, scales=scales)

    def _fit(self, layer: int, buffer_ND: Tensor | None = None, scales: dict[str, Tensor] | None = None) -> LayerFit:
        """What a fit cell left, cut to the rank that the layer has, with scales that were fitted after it."""
        fitted = cut_fit(self._allocated(0), layer, self._partial(FitCell(layer), buffer_ND))
        return LayerFit.from_tensors(fitted | (scales or {}), self._source.device)
