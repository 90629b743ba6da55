"""What a person reads before and after a build."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tolbuild.drive.estimate import estimate
from tolbuild.drive.progress import duration, size
from tolbuild.plan import Plan
from tolbuild.table.manifest import Manifest

_BAR = 20
"""Width of the bar beside each layer's error."""


def describe_plan(plan: Plan, *, spools: bool) -> str:
    """A plan in words and figures: the grid, the arithmetic, the bytes and what a worker needs."""
    cost = estimate(plan, spools=spools)
    dropped = f", without {_numbers(plan.dropped_layers)}" if plan.dropped_layers else ""
    lines = [
        f"Plan {plan.plan_hash}: {plan.vocab_size:,} tokens x {len(plan.kept_layers)} layers{dropped}, "
        f"rows of {plan.hidden_size}, {plan.hidden_units} hidden units",
        "",
        f"  table     {_codes(plan)}, {len(plan.bands)} bands, {plan.num_shards} shards of {plan.shard_rows:,} tokens",
        f"  cells     {_cells(plan)}",
        f"  FLOPs     {_flops(cost.total_flops)}: rows {_flops(cost.row_flops)}, Gram matrices "
        f"{_flops(cost.gram_flops)}, bases {_flops(cost.eigh_flops)}, codes and their error {_flops(cost.codes_flops)}",
        f"  written   {size(cost.table_bytes)}, {cost.fp16_bytes / cost.table_bytes:.2f} times smaller than fp16 at "
        f"full rank ({size(cost.fp16_bytes)})",
        f"  read      {size(cost.read_bytes)} of the checkpoint (in fp32; half of it where it is stored in 16 bits)",
        f"  spooled   {size(cost.spooled_bytes)} in all on the workers' disks, gone at the end",
        f"  _build/   {size(cost.partial_bytes)} of partial results, gone after the commit",
        f"  a worker  {size(cost.worker_bytes)} of memory beside its libraries, whatever the vocabulary",
    ]
    return "\n".join(lines)


def summarise(plan: Plan, manifest: Manifest, url: str, *, seconds: Mapping[str, float], num_resumed: int) -> str:
    """The end of a build: size before and after, rank and error by layer, time by stage, where it is."""
    before, after = plan.vocab_size * plan.num_layers * plan.hidden_size * 2, manifest.total_bytes
    lines = [
        "",
        f"  {url}  version {manifest.version}",
        "",
        f"  size      {size(before)} as fp16 at full rank -> {size(after)} as {_codes(plan)}: "
        f"{before / after:.2f} times smaller",
        f"  rows      {plan.vocab_size:,} tokens x {len(plan.kept_layers)} layers in {len(plan.bands)} bands of "
        f"{plan.num_shards} shards",
        "",
        *_layer_lines(plan, manifest),
        "",
        f"  time      {duration(sum(seconds[name] for name in ('open', 'cells', 'commit')))}: checkpoint "
        f"{duration(seconds['open'])}, cells {duration(seconds['cells'])}, commit {duration(seconds['commit'])}",
        f"  workers   {_worker_seconds(seconds)}" + (f"; {num_resumed} cells came from before" if num_resumed else ""),
        "",
        f"  look      python -m tolbuild.inspect {url}",
        f"  check     python -m tolbuild.verify {url}",
        f'  use       tolbuild.table.open_table("{url}").rows([1, 2, 3])',
        "",
    ]
    return "\n".join(lines)


def _layer_lines(plan: Plan, manifest: Manifest) -> list[str]:
    """One line a layer: rank, energy kept, error, and the error as a bar."""
    stats = manifest.layer_stats
    worst = max((s.relative_error for s in stats), default=0.0)
    lines = ["  layer     rank   energy kept    error"]
    for stat in stats:
        bar = "#" * round(_BAR * stat.relative_error / worst) if worst else ""
        lines.append(
            f"  {stat.layer:>5}  {plan.rank(stat.layer):>7}   {100 * stat.energy_kept:>9.3f} %   "
            f"{100 * stat.relative_error:>6.3f} %  {bar}".rstrip()
        )
    if plan.dropped_layers:
        lines.append(f"  left out: {_numbers(plan.dropped_layers)}")
    return lines


def _worker_seconds(seconds: Mapping[str, float]) -> str:
    names = {"sums": "rows and sums", "fits": "bases and scales", "codes": "codes", "transfer": "reading and writing"}
    return ", ".join(f"{label} {duration(seconds[name])}" for name, label in names.items() if name in seconds)


def _codes(plan: Plan) -> str:
    codes = f"{plan.codes} ({plan.layout})" if plan.layout != "zarr" else plan.codes
    if plan.full_rank:
        return f"{codes} at full rank"
    ranks = {rank for band in plan.bands for rank in band.ranks}
    return f"{codes} at rank {'/'.join(map(str, sorted(ranks)))} of {plan.hidden_size}"


def _cells(plan: Plan) -> str:
    sums, fits, shards = len(plan.sum_cells()), len(plan.fit_cells()), len(plan.shard_cells())
    parts = [f"{sums} sums ({len(plan.segments)} segments a layer)"] if sums else []
    parts += [f"{fits} fits"] if fits else []
    return " -> ".join([*parts, f"{shards} codes (a shard of a band each)"])


def _numbers(layers: Sequence[int]) -> str:
    return f"layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, layers))}"


def _flops(count: float) -> str:
    for unit, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if count >= scale:
            return f"{count / scale:,.1f} {unit}FLOP"
    return f"{count:.0f} FLOP"
