"""What a person reads before and after a build."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tolbuild.compress.allocate import RANK_STEP
from tolbuild.drive.estimate import Estimate, estimate
from tolbuild.drive.progress import duration, size
from tolbuild.plan import Plan
from tolbuild.table.manifest import Manifest
from tolbuild.table.stats import LayerEnergy

_BAR = 20
"""Width of the bar beside each layer's error."""


def describe_plan(plan: Plan, energies: Mapping[int, LayerEnergy], *, spools: bool) -> str:
    """A plan in words and figures: the grid, the arithmetic, the bytes and what a worker needs.

    Args:
        energies: by layer, where pass 1 has told them; they give the error that the ranks leave.
    """
    cost = estimate(plan, spools=spools)
    dropped = f", without {_numbers(plan.dropped_layers)}" if plan.dropped_layers else ""
    lines = [
        f"Plan {plan.plan_hash}: {plan.vocab_size:,} tokens x {len(plan.kept_layers)} layers{dropped}, "
        f"rows of {plan.hidden_size}, {plan.hidden_units} hidden units",
        "",
        f"  table     {_codes(plan)}, {_grid(plan, ', ')} of {plan.shard_rows:,} tokens",
        f"  cells     {_cells(plan)}",
        f"  FLOPs     {_flops(cost.total_flops)}: rows {_flops(cost.row_flops)}, Gram matrices "
        f"{_flops(cost.gram_flops)}, bases {_flops(cost.eigh_flops)}, codes and their error {_flops(cost.codes_flops)}",
        f"  written   {_written(cost)} at full rank ({size(cost.fp16_bytes)})",
        f"  read      {size(cost.read_bytes)} of the checkpoint (in fp32; half of it where it is stored in 16 bits)",
        f"  spooled   {size(cost.spooled_bytes)} in all on the workers' disks, gone at the end",
        f"  _build/   {size(cost.partial_bytes)} of partial results, gone after the commit",
        f"  a worker  {size(cost.worker_bytes)} of memory beside its libraries, whatever the vocabulary",
        *_energy_lines(plan, energies),
    ]
    return "\n".join(lines)


def summarise(
    plan: Plan,
    manifest: Manifest,
    url: str,
    energies: Mapping[int, LayerEnergy],
    *,
    seconds: Mapping[str, float],
    num_resumed: int,
) -> str:
    """The end of a build: size before and after, rank and error by layer, time by stage, where it is.

    Args:
        plan: with the ranks of the table. energies: by layer; empty where there was no pass 1.
    """
    before, after = plan.vocab_size * plan.num_layers * plan.hidden_size * 2, manifest.total_bytes
    lines = [
        "",
        f"  {url}  version {manifest.version}",
        "",
        f"  size      {size(before)} as fp16 at full rank -> {size(after)} as {_codes(plan)}: "
        f"{_against(before, after)}",
        f"  rows      {plan.vocab_size:,} tokens x {len(plan.kept_layers)} layers in {_grid(plan, ' of ')}",
        *_token_scales(manifest),
        "",
        *_layer_lines(plan, manifest, energies),
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


def _token_scales(manifest: Manifest) -> list[str]:
    layers = sorted(layer for band in manifest.bands for layer in band.token_scaled)
    return [f"  s_token   tokens have a scale of their own in {_numbers(layers)}"] if layers else []


def _layer_lines(plan: Plan, manifest: Manifest, energies: Mapping[int, LayerEnergy]) -> list[str]:
    """One line a layer: rank, energy kept, what the mean alone explains, error (weighted too), the error as a bar."""
    stats = manifest.layer_stats
    worst = max((s.relative_error for s in stats), default=0.0)
    weighted = "  weighted" if plan.weights else ""
    lines = [f"  layer     rank   energy kept   mean alone    error{weighted}"]
    for stat in stats:
        bar = "#" * round(_BAR * stat.relative_error / worst) if worst else ""
        mean = f"{100 * energies[stat.layer].mean_share:>8.2f} %" if stat.layer in energies else f"{'-':>10}"
        own = "" if stat.weighted_error is None else f"{100 * stat.weighted_error:>8.3f} %"
        lines.append(
            f"  {stat.layer:>5}  {stat.rank:>7}   {100 * stat.energy_kept:>9.3f} %   {mean}   "
            f"{100 * stat.relative_error:>6.3f} %{own}  {bar}".rstrip()
        )
    if plan.dropped_layers:
        lines.append(f"  left out: {_numbers(plan.dropped_layers)}")
    return lines


def _energy_lines(plan: Plan, energies: Mapping[int, LayerEnergy]) -> list[str]:
    """The same before codes are made: what the ranks leave out, without the rounding of codes."""
    if not energies:
        return []
    lines = ["", "  pass 1 is done; before codes are rounded:", "  layer     rank   energy kept   mean alone    error"]
    for layer in plan.kept_layers:
        energy, rank = energies[layer], plan.rank(layer)
        lines.append(
            f"  {layer:>5}  {rank:>7}   {100 * energy.kept(rank):>9.3f} %   {100 * energy.mean_share:>8.2f} %   "
            f"{100 * energy.error(rank):>6.3f} %"
        )
    return lines


def _written(cost: Estimate) -> str:
    documents = cost.document_bytes
    most = f"{size(cost.table_bytes + documents)}, {_against(cost.fp16_bytes, cost.table_bytes + documents)} than fp16"
    if cost.least_table_bytes == cost.table_bytes:
        return most
    least = cost.least_table_bytes + documents
    return f"between {size(least)}, {_against(cost.fp16_bytes, least)}, and {most}"


def _against(before: int, after: int) -> str:
    return f"{before / after:.2f} times smaller" if after <= before else f"{after / before:.2f} times larger"


def _grid(plan: Plan, between: str) -> str:
    counts = ((len(plan.bands), "band"), (plan.num_shards, "shard"))
    return between.join(f"{count} {thing}{'' if count == 1 else 's'}" for count, thing in counts)


def _worker_seconds(seconds: Mapping[str, float]) -> str:
    stages = {
        "rows and sums": ("sums",),
        "bases and scales": ("fits", "ranks", "scales"),
        "codes": ("codes",),
        "reading and writing": ("transfer",),
    }
    times = {label: [seconds[name] for name in names if name in seconds] for label, names in stages.items()}
    return ", ".join(f"{label} {duration(sum(found))}" for label, found in times.items() if found)


def _codes(plan: Plan) -> str:
    codes = f"{plan.codes} ({plan.layout})" if plan.layout != "zarr" else plan.codes
    if plan.full_rank:
        return f"{codes} at full rank"
    ranks = sorted({rank for band in plan.bands for rank in band.ranks})
    if not plan.allocated:
        ranks = sorted({min(RANK_STEP, plan.hidden_size), *ranks})
    several = "/".join(map(str, ranks)) if plan.allocated and len(ranks) < 4 else f"{ranks[0]} to {ranks[-1]}"
    return f"{codes} at rank {several} of {plan.hidden_size}" + (f" by {plan.rule}" if plan.rule else "")


def _cells(plan: Plan) -> str:
    sums, fits, shards = len(plan.sum_cells()), len(plan.fit_cells()), len(plan.shard_cells())
    parts = [f"{sums} sums ({len(plan.segments)} segments a layer)"] if sums else []
    parts += [f"{fits} fits"] if fits else []
    parts += ["ranks"] if plan.ranks_cells() else []
    parts += [f"{len(plan.scale_cells())} scales"] if plan.scale_cells() else []
    return " -> ".join([*parts, f"{shards} codes (a shard of a band each)"])


def _numbers(layers: Sequence[int]) -> str:
    return f"layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, layers))}"


def _flops(count: float) -> str:
    for unit, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if count >= scale:
            return f"{count / scale:,.1f} {unit}FLOP"
    return f"{count:.0f} FLOP"
