"""The points of a run: one factor at a time around each engine's base point, crossings that matter, and a ladder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tolserve.bench.cost.point import EngineName, Point, base

Values = dict[str, list[Any]]

FACTORS = {
    "base": "the base points",
    "place": "where the rows are",
    "round_trip": "added round trip",
    "link": "the link",
    "nodes": "memory nodes",
    "rows": "form of the rows",
    "cache": "share of the tokens cached, and policy",
    "pinned": "bands pinned",
    "overlap": "overlap on and off",
    "batch": "sequences in a step",
    "prompt": "tokens in a prompt",
    "pace": "time of a layer",
    "stream": "which tokens",
    "arrivals": "Poisson arrivals",
    "cache x batch": "crossing",
    "link x rows": "crossing",
    "pace x pinned": "crossing",
    "measures": "what each measure takes away, one after another, on a link of 1 Gbit/s",
}

GIGABIT = 1.0
_CODES = ["full-float16", "1024-float16", "512-float16", "256-float16", "full-int8", "full-int4", "256-int4"]
_BEYOND_TCP = ["flight", "ray", "host-cached", "store"]

FULL: Values = {
    "paced.round_trip": [0.05, 0.1, 0.3, 1.0, 3.0, 10.0],
    "paced.nodes": [2, 3, 4],
    "paced.place": ["host", "mapped", "cold", *_BEYOND_TCP],
    "paced.rows": _CODES,
    "paced.cache": [0.0, 0.02, 0.05, 0.2, 0.5],
    "paced.pinned": [0, 2, 3],
    "paced.batch": [1, 2, 4, 16, 32, 64],
    "paced.pace": [10.0, 40.0],
    "paced.stream": ["text-own", "bpe-32k", "bpe-128k", "zipf-256k", "zipf-1m", "recorded"],
    "paced.link_rows": ["full-float16", "1024-float16", "256-int4"],
    "tiny.place": ["computed", "device", "host", "mapped", "cold", *_BEYOND_TCP],
    "tiny.round_trip": [0.1, 1.0, 10.0],
    "tiny.rows": _CODES,
    "tiny.nodes": [2, 4],
    "tiny.cache": [0.0, 0.5],
    "tiny.batch": [1, 32],
    "tiny.prompt": [128, 480],
    "tiny.arrivals": [20.0],
    "1b.place": ["device", "host"],
    "1b.batch": [4],
    "1b.prompt": [512, 2048],
}
QUICK: Values = {
    "paced.round_trip": [0.1, 1.0, 10.0],
    "paced.nodes": [2],
    "paced.place": ["host", "flight", "host-cached"],
    "paced.rows": ["full-float16", "256-int4"],
    "paced.cache": [0.0, 0.5],
    "paced.pinned": [0],
    "paced.batch": [1, 64],
    "paced.pace": [10.0, 40.0],
    "paced.stream": ["text-own", "zipf-256k", "recorded"],
    "paced.link_rows": ["full-float16"],
    "tiny.place": ["computed", "device", "mapped", "cold", "store"],
    "tiny.round_trip": [],
    "tiny.rows": ["full-int4"],
    "tiny.nodes": [],
    "tiny.cache": [0.0],
    "tiny.batch": [1],
    "tiny.prompt": [128],
    "tiny.arrivals": [20.0],
}


def matrix(*, full: bool, links: Sequence[str] = (), only: Sequence[str] = ()) -> list[Point]:
    """All points, no two alike; `links` are those of given memory nodes, `only` keeps the factors named.

    Raises:
        ValueError: there is no such factor.
    """
    unknown = sorted(set(only) - set(FACTORS))
    if unknown:
        raise ValueError(f"no factor {', '.join(unknown)}; there are {', '.join(FACTORS)}")
    values = FULL if full else QUICK
    points = [*_paced(values, links), *_tiny(values)]
    if full:
        points += _few_layers(values)
    found: dict[str, Point] = {}
    for point in points:
        if not only or point.factor in only:
            found.setdefault(point.name, point)
    return sorted(found.values(), key=lambda point: (point.engine != "paced", point.engine))


def _paced(values: Values, links: Sequence[str]) -> list[Point]:
    usual = base("paced")
    found = [usual, *_single(values, "paced")]
    found += [replace(usual, factor="link", link=link) for link in links]
    found += [replace(usual, factor="cache", policy=policy) for policy in ("lru", "s3fifo")]
    found.append(replace(usual, factor="overlap", overlap=False))
    shares, batches = [0.0, 0.5], [1, 64]
    found += [
        replace(usual, factor="cache x batch", cache_share=share, batch=batch) for share in shares for batch in batches
    ]
    narrow: list[dict[str, Any]] = [{"link": link} for link in links] or [{"gbit_per_s": GIGABIT}]
    found += [
        replace(usual, factor="link x rows", codes=codes, **link)
        for link in narrow
        for codes in [usual.codes, *values["paced.link_rows"]]
    ]
    found += [
        replace(usual, factor="pace x pinned", pace_us=pace, pinned_bands=pinned)
        for pace in (10.0, 40.0)
        for pinned in (0, 2)
    ]
    return found + measures(links)


def measures(links: Sequence[str] = ()) -> list[Point]:
    """From rows as they are, fetched before each step over 1 Gbit/s, to the base point: one measure after another."""
    link: dict[str, Any] = {"link": "1gbit"} if "1gbit" in links else {"gbit_per_s": GIGABIT}
    naive = replace(
        base("paced"),
        factor="measures",
        codes="full-float16",
        cache_share=0.0,
        pinned_bands=0,
        overlap=False,
        **link,
    )
    steps: list[dict[str, Any]] = [{"overlap": True}, {"codes": "512-int8"}, {"cache_share": 0.1}, {"pinned_bands": 1}]
    found = [naive]
    for step in steps:
        found.append(replace(found[-1], **step))
    return found


def _tiny(values: Values) -> list[Point]:
    usual = base("tiny")
    return [usual, *_single(values, "tiny"), replace(usual, factor="overlap", overlap=False)]


def _few_layers(values: Values) -> list[Point]:
    return [base("1b"), *_single(values, "1b"), replace(base("1b"), factor="rows", codes="full-float16")]


_FIELDS = {
    "round_trip": "round_trip_ms",
    "nodes": "num_nodes",
    "place": "place",
    "rows": "codes",
    "cache": "cache_share",
    "pinned": "pinned_bands",
    "batch": "batch",
    "prompt": "prompt",
    "pace": "pace_us",
    "stream": "stream",
    "arrivals": "arrivals_per_s",
}


def _single(values: Values, engine: EngineName) -> list[Point]:
    """The points that differ from an engine's base in one setting."""
    found = []
    for key, wanted in values.items():
        name, _, factor = key.partition(".")
        if name == engine and factor in _FIELDS:
            found += [_varied(base(engine), factor, value) for value in wanted]
    return found


def _varied(usual: Point, factor: str, value: Any) -> Point:
    """One setting changed; rows that are on the device already have neither cache nor pinned bands before them."""
    changes: dict[str, Any] = {_FIELDS[factor]: value}
    if value in ("computed", "device"):
        changes |= {"cache_share": 0.0, "pinned_bands": 0}
    if value == "computed":
        changes["codes"] = "full-float32"
    return replace(usual, factor=factor, **changes)
