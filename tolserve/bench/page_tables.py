"""Tables of results that have no bars: other libraries beside ours, and builds at the paper's size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def rivals(result: Mapping[str, Any]) -> str:
    """Reads, decompositions and builds of `python -m tolbuild.bench.rivals`, each with the mode that was fastest."""
    found = result["results"]
    parts = [_reads(found["rows"]), _seconds("svd", found["svd"]), _seconds("build", found["builds"])]
    return "\n\n".join(part for part in parts if part)


def large_builds(result: Mapping[str, Any]) -> str:
    """Time, memory and bytes of `benchmarks/large_builds/study.py` by case."""
    rows = ["| table | wall | efficiency by CPU time | peak of a worker | its band's weights | table | resumed cells |"]
    rows.append("|---|---|---|---|---|---|---|")
    for name, one in result["results"].items():
        resumed = one["resumed_cells"] if one["killed_after_cells"] is not None else "-"
        memory = f"{_mb(one['worker_peak_bytes'])} | {_mb(one['band_weight_bytes'])}"
        time = f"{one['wall_s'] / 60:.1f} min | {one['build_efficiency']:.2f}"
        rows.append(f"| {name} | {time} | {memory} | {one['table_bytes'] / 1e9:.2f} GB | {resumed} |")
    return "\n".join(rows)


def _reads(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    rows = ["| 128 random rows of 24 KiB | warm, ms | cold, ms | fastest mode, warm |", "|---|---|---|---|"]
    for name, warm in found["warm_ms"].items():
        mode = found["warm_modes"].get(name) or found["missing"].get(name, "")
        rows.append(f"| {name} | {_number(warm)} | {_number(found['cold_ms'].get(name))} | {mode} |")
    return "\n".join(rows)


def _seconds(what: str, found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    errors = found.get("max_rel_error", found.get("relative_error", {}))
    rows = [f"| {what} | seconds | relative error | mode |", "|---|---|---|---|"]
    for name, seconds in found["seconds"].items():
        mode = found["modes"].get(name) or found["missing"].get(name, "")
        error = f"{errors[name]:.1e}" if name in errors else "-"
        rows.append(f"| {name} | {_number(seconds)} | {error} | {mode} |")
    return "\n".join(rows)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _mb(num_bytes: float) -> str:
    return f"{num_bytes / 1e6:,.0f} MB"
