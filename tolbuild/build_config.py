"""Every choice of a build, as one frozen dataclass that the command line is made from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tolbuild.compress.allocate import ByteBudget, RankOption, RankRule, parse_rank

Codes = Literal["fp32", "bf16", "fp16", "int8", "int4"]
Rank = Literal["full"] | int | str

BLOCK_ROWS = 64
"""Token ids in a block, the unit that shards are made of."""

CODE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1, "int4": 0.5}


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """One build: which checkpoint, where the table goes, what is stored and who works.

    Only `rank`, `codes`, `row_scales`, `layout`, `layers_per_band`, `shard_rows`, `drop_layers`, `weights` and
    `layer_weights` change the table's bytes; the others change who computes them and how fast.

    Raises:
        ValueError: a value that no build can have, with the value and what it may be.
    """

    checkpoint: str
    """Checkpoint folder: a path, s3:// or another URL, or builtin:tiny, the small model that comes with this."""
    table: str
    """Where the table goes: a path, file://, s3://bucket/prefix or memory://."""
    rank: Rank = "full"
    """full keeps the rows as they are; N keeps N principal components of every layer's rows (at most the width);
    energy:0.999 the fewest that keep this share of each layer's energy; bytes:2GiB those of all layers that leave the
    least error in a table of this size (bases, means, scales and checksums included)."""
    codes: Codes = "fp16"
    """Stored type. Integers have a scale a component, fitted by error on a fixed sample of tokens."""
    row_scales: Literal["auto", "never"] = "auto"
    """Whether integer codes have a scale a token too, 2 bytes of its row: auto keeps one in the layers where it lowers
    the sample's error by more than as many bits of finer codes would."""
    layout: Literal["zarr", "parquet"] = "zarr"
    """Files of the codes; any reader of the format opens them, and both are read by address."""
    layers_per_band: int = 4
    """Consecutive layers stored together: one range read a band fetches them all for a token."""
    shard_rows: int = 4096
    """Tokens in one object of a band: a multiple of 64. One shard of one band is what a worker makes at a time."""
    drop_layers: tuple[int, ...] = ()
    """Layers to leave out; the table gives zeros for them. (The middle ones are the most redundant.)"""
    weights: str = "uniform"
    """What each token counts in bases, means and errors: uniform, or counts:FILE, how often it occurs (JSON or .npy
    with V counts; `python -m tolbuild.count` makes it from text)."""
    layer_weights: Path | None = None
    """With --rank bytes: what a unit of error in each layer costs (JSON; `python -m tolbuild.sensitivity` measures it).
    Every layer's error counts alike when left out."""
    workers: int = 0
    """Workers at a time; 0 takes one for each GPU of the cluster (or machine), else one for each CPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where rows are computed; auto takes a GPU where a worker has one."""
    no_ray: bool = False
    """Build in this one process, a thread a worker, without a Ray cluster."""
    new_version: bool = False
    """Publish as the next version where a table of other options or another checkpoint stands."""
    single_writer: bool = False
    """Nobody else writes at the place: build on a store that ignores the condition of a conditional put, too."""
    dry_run: bool = False
    """Print the plan (cells, arithmetic, bytes, memory a worker) and stop."""
    device_description: str | None = None
    """With --dry-run: estimate time and dollars on --workers (0: one) of this device: cpu-core, h100, or a JSON file
    with row_flops, fp64_flops, transfer_bytes_per_s, start_s and dollars_per_hour of one worker."""
    log_json: bool = False
    """Say everything on standard error as one JSON object a line: messages, progress, and the result at the end."""
    rows: Literal["auto", "spool", "recompute"] = "auto"
    """How pass 2 gets the rows of pass 1: from local disk or computed again (the same bits); auto spools on a CPU."""
    spool_dir: Path | None = None
    """Folder on each worker's machine for spooled rows; the system's temporary folder when left out."""
    spool_gb: float = 64.0
    """Most that spooled rows may take on one machine; what does not fit is computed again."""

    def __post_init__(self) -> None:
        for name, least in (("layers_per_band", 1), ("shard_rows", BLOCK_ROWS), ("workers", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{_option(name)} is {getattr(self, name)}; it must be at least {least}")
        for name in ("checkpoint", "table"):
            if not getattr(self, name).strip():
                raise ValueError(f"{_option(name)} is empty; give a path or a URL")
        if self.shard_rows % BLOCK_ROWS:
            near = round(self.shard_rows / BLOCK_ROWS) * BLOCK_ROWS
            raise ValueError(f"--shard-rows is {self.shard_rows}; no multiple of {BLOCK_ROWS}, such as {near}")
        self._check_allocation()
        if self.device_description is not None and not self.dry_run:
            raise ValueError("--device-description is for an estimate; it needs --dry-run")
        if self.spool_gb < 0:
            raise ValueError(f"--spool-gb is {self.spool_gb}; it cannot be negative")
        if len(set(self.drop_layers)) != len(self.drop_layers):
            raise ValueError(f"--drop-layers names a layer twice: {' '.join(map(str, self.drop_layers))}")

    @property
    def rank_option(self) -> RankOption | RankRule:
        """What `rank` says."""
        return parse_rank(self.rank)

    @property
    def scales_rows(self) -> bool:
        """Whether tokens may have scales."""
        return self.row_scales == "auto" and self.codes in ("int8", "int4")

    def _check_allocation(self) -> None:
        rank = self.rank_option
        if self.weights != "uniform" and not self.weights.startswith("counts:"):
            raise ValueError(f"--weights is {self.weights!r}; it must be uniform or counts:FILE")
        if self.weights != "uniform" and rank == "full":
            raise ValueError("--weights counts: weighs bases and means, and --rank full has none; give a lower rank")
        if self.layer_weights is not None and not isinstance(rank, ByteBudget):
            raise ValueError(f"--layer-weights divides a budget; it needs --rank bytes:SIZE, not --rank {self.rank}")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
