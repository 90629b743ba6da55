"""What a plan costs before it runs: arithmetic, bytes and memory, from shapes alone."""

from __future__ import annotations

from dataclasses import dataclass

from tolbuild.build import IN_FLIGHT
from tolbuild.compress.allocate import ByteBudget, rank_bounds
from tolbuild.drive.document_sizes import document_bytes
from tolbuild.grid import Cell, FitCell, RanksCell, ScaleCell, SumCell
from tolbuild.plan import READ_ROWS, BandPlan, Plan
from tolbuild.table.parquet import ParquetLayout


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """FLOPs count a multiplication and an addition as two. Bytes are totals of the build but for `worker_bytes`.

    Where ranks follow from spectra all figures are the most that they can be; `least_table_bytes` is the least. Tokens'
    scales are counted in every layer that may have them. document_bytes: see tolbuild.drive.document_sizes.
    """

    row_flops: int
    gram_flops: int
    eigh_flops: int
    codes_flops: int
    table_bytes: int
    least_table_bytes: int
    document_bytes: int
    fp16_bytes: int
    read_bytes: int
    partial_bytes: int
    spooled_bytes: int
    worker_bytes: int

    @property
    def total_flops(self) -> int:
        """All of them."""
        return self.row_flops + self.gram_flops + self.eigh_flops + self.codes_flops


def estimate(plan: Plan, *, spools: bool) -> Estimate:
    """The cost of a plan.

    Args:
        spools: whether pass 2 finds the rows of pass 1 on local disk; else it computes them again.
    """
    rows, width, hidden = plan.vocab_size, plan.hidden_size, plan.hidden_units
    layers, reduced = len(plan.kept_layers), plan.needs_sums
    row_flops = 6 * width * hidden * rows * layers
    times_computed = 2 if reduced and not spools else 1
    embedding_bytes = 4 * rows * width
    pass_2_reads = len(plan.bands) if not reduced or not spools else 0
    return Estimate(
        row_flops=row_flops * times_computed,
        gram_flops=rows * width * (width + 1) * layers if reduced else 0,
        eigh_flops=9 * width**3 * layers if reduced else 0,
        codes_flops=sum(_codes_flops(plan, band) for band in plan.bands),
        table_bytes=_table_bytes(plan),
        least_table_bytes=_table_bytes(plan) if plan.allocated else _least_table_bytes(plan),
        document_bytes=document_bytes(plan),
        fp16_bytes=rows * plan.num_layers * width * 2,
        read_bytes=embedding_bytes * ((layers if reduced else 0) + pass_2_reads) + 12 * width * hidden * layers,
        partial_bytes=_partial_bytes(plan),
        spooled_bytes=4 * rows * width * layers if reduced and spools else 0,
        worker_bytes=_worker_bytes(plan, spools=spools),
    )


def cell_weight(plan: Plan, cell: Cell, *, spools: bool) -> float:
    """A cell's share of the work, in FLOPs of row computation, for the time that is left."""
    width = plan.hidden_size
    per_row = 6.0 * width * plan.hidden_units
    if isinstance(cell, SumCell):
        return len(plan.segments[cell.segment]) * (per_row + 2.0 * width * width)
    if isinstance(cell, RanksCell):
        return 1e3 * width * len(plan.kept_layers)
    if isinstance(cell, ScaleCell):
        return 2.0 * min(4096, plan.vocab_size) * width * plan.rank(cell.layer)
    if isinstance(cell, FitCell):
        return 18.0 * width**3 if plan.needs_sums else min(4096, plan.vocab_size) * per_row
    span, band = plan.shard_range(cell.shard), plan.bands[cell.band]
    computed = 0.0 if plan.needs_sums and spools else per_row * len(band.layers)
    return len(span) * (computed + sum(8.0 * width * (rank if plan.needs_sums else 1) for rank in band.ranks))


def _codes_flops(plan: Plan, band: BandPlan) -> int:
    """Projection, and the same again to measure the error of what was stored."""
    return 4 * plan.vocab_size * plan.hidden_size * band.num_columns if plan.needs_sums else 0


def _table_bytes(plan: Plan) -> int:
    """All that is stored, see tolbuild.sizes; within the budget where there is one."""
    costs, layers = plan.costs, plan.kept_layers
    step = 2 if plan.codes == "int4" else 1  # two codes share a byte
    ranks = {layer: -(-plan.rank(layer) // step) * step for layer in layers}
    most = costs.fixed + sum(costs.of_layer(ranks[layer], whole=plan.is_whole(layer)) for layer in layers)
    return most if plan.allocated or not isinstance(plan.rule, ByteBudget) else min(most, plan.rule.num_bytes)


def _least_table_bytes(plan: Plan) -> int:
    assert plan.rule is not None
    costs, width = plan.costs, plan.hidden_size
    rank, _ = rank_bounds(plan.rule, costs, len(plan.kept_layers), width)
    return costs.fixed + len(plan.kept_layers) * costs.of_layer(rank, whole=rank == width)


def _partial_bytes(plan: Plan) -> int:
    if not plan.needs_fit:
        return 0
    width, layers = plan.hidden_size, len(plan.kept_layers)
    if plan.full_rank:
        return 4 * width * layers
    sums = len(plan.segments) * (4 * width * (width + 1) + 8 * width)
    fits = sum(4 * width * (1 + plan.num_fitted(layer)) + 8 * width for layer in plan.kept_layers)
    weights = 8 * plan.vocab_size if plan.weights else 0
    samples = 4 * width * min(4096, plan.vocab_size) if plan.quantised else 0
    return layers * (sums + samples) + fits + weights


def _worker_bytes(plan: Plan, *, spools: bool) -> int:
    """The largest of what a worker holds in either pass, beyond its libraries."""
    width, hidden, chunk = plan.hidden_size, plan.hidden_units, plan.chunk_rows
    widest = max(plan.bands, key=lambda band: band.num_columns)
    network = 4 * 3 * width * hidden
    activations = 4 * chunk * (2 * hidden + 3 * width)
    embedding = 2 * 4 * max(chunk, READ_ROWS) * width
    gram = 8 * 3 * width * width + 8 * chunk * width
    pass_1 = network + activations + embedding + gram if plan.needs_sums else 0
    decoders = 0 if plan.full_rank else 4 * 2 * width * widest.num_columns
    shards_held = IN_FLIGHT * 2 + (2 if plan.layout == ParquetLayout.format else 0)
    held_codes = shards_held * plan.shard_rows * plan.row_bytes(widest)
    pass_2 = decoders + held_codes + 4 * 3 * chunk * width
    if not (plan.needs_sums and spools):
        pass_2 += network * len(widest.layers) + activations + IN_FLIGHT * 4 * plan.shard_rows * width
    return max(pass_1, pass_2)
