"""What `cluster.status` shows, as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tolserve.versions import describe


def render(seen: dict[str, Any]) -> str:
    """A glance (`cluster.glance.glance`) as text: a head, the attention nodes, the memory nodes."""
    requests = seen["requests"]
    answers = ", ".join(f"{count:.0f} with {status}" for status, count in requests["answers"].items()) or "none yet"
    lines = [
        f"{seen['url']}: {describe(seen)}",
        f"  table      {seen['table'] or 'none'}" + (f", {_published(seen['published'])}" if seen["table"] else ""),
        f"  requests   {requests['running']:.0f} running, {requests['waiting']:.0f} waiting; "
        f"{requests['answers_per_s']:.1f} answers/s; so far {answers}",
        f"  tokens     {requests['generated_tokens_per_s']:,.0f}/s out, {requests['prompt_tokens_per_s']:,.0f}/s in",
    ]
    if seen["fault"]:
        lines.append(f"  fault      {seen['fault']}")
    lines += ["", *columns(_ATTENTION, [_attention(node) for node in seen["attention"]])]
    if seen["memory"]:
        lines += ["", *columns(_MEMORY, [_memory(node) for node in seen["memory"]])]
    faults = [f"  {node['address']}: {node['fault']}" for node in seen["attention"] + seen["memory"] if node["fault"]]
    return "\n".join([*lines, *([""] if faults else []), *faults])


_ATTENTION = (
    "attention",
    "version",
    "running",
    "waiting",
    "steps/s",
    "rows/s",
    "network",
    "stalled",
    "kv",
    "rows from",
)
_MEMORY = ("memory", "version", "partition", "clients", "requests/s", "rows/s", "network", "refused")


def _attention(node: dict[str, Any]) -> tuple[str, ...]:
    tiers = ", ".join(f"{tier} {share:.0%}" for tier, share in node["rows_by_tier"].items()) or "-"
    return (
        node["address"],
        _versions(node),
        f"{node['running']:.0f}",
        f"{node['waiting']:.0f}",
        f"{node['steps_per_s']:,.0f}",
        f"{node['rows_per_s']:,.0f}",
        bytes_per_s(node["row_bytes_per_s"]),
        "-" if node["stalled"] is None else f"{node['stalled']:.1%}",
        f"{node['kv_cache_used']:.0%}",
        tiers,
    )


def _memory(node: dict[str, Any]) -> tuple[str, ...]:
    return (
        node["address"],
        _versions(node),
        f"{node['partition']} of {node['partitions']}",
        f"{node['clients']:.0f}",
        f"{node['requests_per_s']:,.0f}",
        f"{node['rows_per_s']:,.0f}",
        bytes_per_s(node["row_bytes_per_s"]),
        f"{node['refused']:.0f}",
    )


def _versions(node: dict[str, Any]) -> str:
    return ", ".join(map(str, node["versions"])) or "-"


def _published(versions: Sequence[int]) -> str:
    if not versions:
        return "nothing published"
    return f"version {versions[0]} published" if len(versions) == 1 else f"versions {versions[0]} to {versions[-1]}"


def columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table: the first column and the last of `head` to the left where it says where rows are from, others right."""
    widths = [max(len(row[place]) for row in (head, *rows)) for place in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if name in ("attention", "memory", "rows from") else cell.rjust(width)
            for name, cell, width in zip(head, cells, widths, strict=True)
        ]
        return ("  " + "   ".join(padded)).rstrip()

    return [line(head), *map(line, rows)] if rows else [line(head), "  none"]


def bytes_per_s(rate: float) -> str:
    """A rate in the unit that fits it."""
    for unit in ("B", "KiB", "MiB"):
        if rate < 1000:
            return f"{rate:.3g} {unit}/s"
        rate /= 1024
    return f"{rate:.3g} GiB/s"
