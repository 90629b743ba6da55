"""The rows that a point is about: what they look like, and the same rows in memory, in files and on memory nodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tolbuild.build_config import BuildConfig
from tolbuild.checkpoint import open_checkpoint
from tolbuild.drive.driver import build_table
from tolbuild.table import Table, open_table
from tolserve.bench.cost.codes import WIDTH_1B, parse
from tolserve.bench.cost.disk import write_rows
from tolserve.bench.cost.point import Point
from tolserve.bench.cost.streams import CHECKPOINT, STREAMS
from tolserve.bench.random_rows import random_store
from tolserve.engine.expand import LayerExpansion, table_expansions
from tolserve.memory.loading import load_partition
from tolserve.memory.partition import Partition
from tolserve.memory.spec import RowSpec
from tolserve.memory.store import CyclicStore, RowStore

NODE_BYTES = 256 << 20
"""Random rows of the paced engine repeat within so much memory, on both sides of the network."""
PAPER_LAYERS = 24
_LAYERS_PER_BAND = 4
_TINY_LAYERS_PER_BAND = 2
FEW_LAYERS = 4
"""Of the 1B shape on this machine's CPU."""
_FEW_PER_BAND = 2


@dataclass(kw_only=True)
class Material:
    """Rows of one form; what is expensive is made when it is first asked for and then kept.

    Attributes:
        node: what a memory node is told to hold them; see `node.open_store`.
        make_store: the rows in this process.
        make_url: a table on local disk that holds them.
        table: the open table, where they come from a build.
    """

    spec: RowSpec
    node: dict[str, Any]
    make_store: Callable[[], RowStore]
    make_url: Callable[[], str]
    table: Table | None = None
    expansions: tuple[LayerExpansion, ...] | None = None
    kept: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def store(self) -> RowStore:
        """All rows, in this process's memory."""
        return self.make_store()

    @cached_property
    def url(self) -> str:
        """A local path of a table with these rows."""
        return self.make_url()


class Materials:
    """The rows of points, those of equal form once.

    Args:
        folder: where tables are kept.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[tuple[str, str, int], Material] = {}

    def get(self, point: Point, *, codes: str | None = None) -> Material:
        """The point's rows, or the same model's in other `codes`."""
        key = (point.engine, codes or point.codes, STREAMS[point.stream].vocab_size)
        if key not in self._made:
            self._made[key] = self._make(*key)
        return self._made[key]

    def close(self) -> None:
        """Close what is open."""
        for material in self._made.values():
            if material.table is not None:
                material.table.close()
        self._made.clear()

    def _make(self, engine: str, codes: str, vocab_size: int) -> Material:
        if engine == "tiny":
            return self._built(codes)
        paced = engine == "paced"
        shape = paced_shape(codes, vocab_size) if paced else _shape(codes, vocab_size, FEW_LAYERS, _FEW_PER_BAND)
        spec = RowSpec.uniform(**shape)
        rows = NODE_BYTES // spec.row_bytes
        made = Material(
            spec=spec,
            node={"kind": "cyclic" if paced else "values", "shape": shape, "max_bytes": NODE_BYTES},
            make_store=lambda: CyclicStore(spec, num_rows=rows, seed=0) if paced else random_store(spec),
            make_url=lambda: write_rows(self._folder / f"{engine}-{codes}-{vocab_size}", made.store),
            expansions=None if paced else _random_bases(codes),
        )
        return made

    def _built(self, codes: str) -> Material:
        """The shipped checkpoint's table, built here."""
        form, checkpoint = parse(codes), open_checkpoint(CHECKPOINT)
        url = str(self._folder / f"tiny-{codes}")
        build_table(
            BuildConfig(
                checkpoint=CHECKPOINT,
                table=url,
                rank="full" if form.rank is None else form.rank_for(checkpoint.config.hidden_size),
                codes=form.build_type,  # type: ignore[arg-type]
                layers_per_band=_TINY_LAYERS_PER_BAND,
                no_ray=True,
                workers=1,
            )
        )
        table = open_table(url)
        return Material(
            spec=RowSpec.from_manifest(table.manifest),
            node={"kind": "table", "url": url},
            make_store=lambda: load_partition(table, Partition()),
            make_url=lambda: url,
            table=table,
            expansions=table_expansions(table, checkpoint.config.num_hidden_layers),
        )


def paced_shape(codes: str, vocab_size: int) -> dict[str, Any]:
    """The paced engine's rows, as `RowSpec.uniform` takes them and a node is told them."""
    return _shape(codes, vocab_size, PAPER_LAYERS, _LAYERS_PER_BAND)


def _shape(codes: str, vocab_size: int, num_layers: int, layers_per_band: int) -> dict[str, Any]:
    form = parse(codes)
    return {
        "num_layers": num_layers,
        "layers_per_band": layers_per_band,
        "rank": form.rank_for(WIDTH_1B),
        "dtype": form.dtype,
        "vocab_size": vocab_size,
    }


def _random_bases(codes: str) -> tuple[LayerExpansion, ...] | None:
    """Bases of low-rank codes for a model whose weights are random too; scales of integers at full rank."""
    import torch

    form = parse(codes)
    if form.rank is None:
        if form.dtype not in ("int8", "int4"):
            return None
        return (LayerExpansion(scale_C=torch.full((WIDTH_1B,), 1 / 127)),) * FEW_LAYERS
    basis = np.random.default_rng(0).standard_normal((form.rank, WIDTH_1B)).astype(np.float32) * 1e-3
    return (LayerExpansion(basis_RD=torch.from_numpy(basis), mean_D=torch.zeros(WIDTH_1B)),) * FEW_LAYERS
