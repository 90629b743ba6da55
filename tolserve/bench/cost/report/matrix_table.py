"""The matrix as a table whose columns sort."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from html import escape

from tolserve.bench.cost.report.data import Measured, Run
from tolserve.bench.cost.terminal import percent

Cell = tuple[float | None, str]
"""A value to sort by, and how it is shown."""


def _cell(value: float | None, form: str) -> Cell:
    """A value in a form; "%" is a signed percentage."""
    if value is None:
        return None, ""
    if form == ".3g" and abs(value) >= 1000:
        form = ",.0f"
    return value, percent(value) if form == "%" else format(value, form)


def _path(*path: str, form: str = ".3g") -> Callable[[Measured], Cell]:
    return lambda one: _cell(one.mean(*path), form)


def _hits(one: Measured) -> Cell:
    tiers = dict.fromkeys(tier for sweep in one.sweeps for tier in sweep["hits"])
    shares = {tier: statistics.fmean(sweep["hits"].get(tier, 0.0) for sweep in one.sweeps) for tier in tiers}
    return shares.get("cache", 0.0), ", ".join(f"{tier} {share:.1%}" for tier, share in shares.items())


def _nodes(one: Measured) -> Cell:
    held = one.sweeps[0]["resident_bytes"]
    return _cell((sum(held["memory_nodes"]) or held["host"] or held["disk"]) / 1e6, ",.0f")


def _device(one: Measured) -> Cell:
    return _cell(one.sweeps[0]["resident_bytes"]["attention_node"] / 1e6, ",.0f")


def _sweeps(one: Measured) -> Cell:
    medians = [sweep["median_ms"] for sweep in one.sweeps]
    return _cell(max(medians) / min(medians) - 1 if len(medians) > 1 else None, ".1%")


COLUMNS: dict[str, Callable[[Measured], Cell]] = {
    "vs same codes": _path("price", "codes_local", "mean", form="%"),
    "low": lambda one: _cell(one.price("codes_local")[1], "%"),
    "high": lambda one: _cell(one.price("codes_local")[2], "%"),
    "vs fp16": _path("price", "fp16_local", "mean", form="%"),
    "vs dense": _path("price", "dense", "mean", form="%"),
    "ITL ms": _path("itl_ms", "mean"),
    "ITL p50": _path("itl_ms", "p50"),
    "ITL p99": _path("itl_ms", "p99"),
    "TTFT ms": _path("ttft_ms", "mean"),
    "TTFT p50": _path("ttft_ms", "p50"),
    "TTFT p99": _path("ttft_ms", "p99"),
    "tokens/s": _path("tokens_per_s", form=",.0f"),
    "goodput": _path("goodput_tokens_per_s", form=",.0f"),
    "rows/step": _path("rows_a_step"),
    "unique": _path("unique_rows_a_step"),
    "bytes/token": _path("bytes_a_token", form=",.0f"),
    "rows found in": _hits,
    "fetch p50 ms": _path("fetch_ms", "p50"),
    "fetch p99 ms": _path("fetch_ms", "p99"),
    "stall": _path("stall_share", form=".1%"),
    "link Gbit/s": _path("link_reached", "gbit_per_s"),
    "one row ms": _path("link_reached", "one_row_ms"),
    "device MB": _device,
    "elsewhere MB": _nodes,
    "$/M tokens": _path("dollars_per_million"),
    "sweeps differ": _sweeps,
}


def render(run: Run) -> str:
    """The table, a row a point."""
    heads = "".join(f"<th><button>{escape(name)}</button></th>" for name in ("point", "factor", *COLUMNS))
    rows = "".join(_row(one) for one in run.points)
    table = f'<table class="sortable"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>'
    return f'<div class="scroll" tabindex="0" role="region" aria-label="all points">{table}</div>'


def _row(one: Measured) -> str:
    name, factor = escape(one.name, quote=True), escape(one.point.factor, quote=True)
    cells = [_html(*column(one)) for column in COLUMNS.values()]
    return f'<tr><td data-v="{name}">{name}</td><td data-v="{factor}">{factor}</td>{"".join(cells)}</tr>'


def _html(value: float | None, text: str) -> str:
    return "<td></td>" if value is None else f'<td data-v="{value:.6g}">{escape(text)}</td>'
