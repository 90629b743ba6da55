"""The plots of the page, each a figure with a title and what is to be seen; none where its points were not measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from html import escape

from tolserve.bench.cost.places import PLACES
from tolserve.bench.cost.point import ENGINES, EngineName
from tolserve.bench.cost.report import svg
from tolserve.bench.cost.report.data import Measured, Run
from tolserve.bench.cost.report.svg import Axis, Series
from tolserve.bench.cost_model.check import FLOOR_US

PRICE = Axis(label="added to a step, of the same codes local", percent=True)
_LEAST_US = 1.0
"""Of what a logarithmic axis shows."""
_LOSS = 1e-6
"""A share of the link's bytes that is as good as none."""


def figures(run: Run) -> str:
    """All figures that there are points for."""
    makers: Sequence[Callable[[Run], str]] = (
        latency_by_place,
        ladder,
        price_by_pace,
        price_by_round_trip,
        price_by_link,
        price_by_device_share,
        rate_by_cache,
        price_by_batch,
        predictions,
        predicted_stalls,
    )
    return "\n".join(filter(None, (maker(run) for maker in makers)))


def latency_by_place(run: Run) -> str:
    """Stacked bars: the same step with rows in every place, split into computing and waiting for rows."""
    found = []
    titles = {"paced": "paced engine", "tiny": "real engine, this CPU", "1b": "1B shape, 4 layers, this CPU"}
    for engine in ENGINES:
        parts: list[tuple[str, tuple[float, float]]] = []
        for place in ("device", *PLACES):
            for one in run.along(engine, "place") + _without_cache(run, engine, place):
                if one.point.place == place and one.name not in [name for name, _ in parts]:
                    parts.append((one.name, _split_ms(one)))
        rows = [(_short(name, engine), values) for name, values in parts]
        title = f"A step by where its rows are, {titles[engine]}"
        note = "Means of a token: the step of the same codes local, and what came on top. Hover a bar for its figures."
        found.append(_figure(title, svg.bars(rows, ("computing", "waiting for rows"), unit="ms"), note))
    return "\n".join(filter(None, found))


def ladder(run: Run) -> str:
    """What each measure takes away from the price of rows as they are over 1 Gbit/s."""
    names = (
        "uncompressed, fetched before the step",
        "+ overlap",
        "+ rank 512, int8",
        "+ cache 10 %",
        "+ first band pinned",
    )
    rows = [(name, _split_ms(one)) for name, one in zip(names, run.ladder(), strict=False)]
    rows = [(name if len(name) < 26 else "as they are", values) for name, values in rows]
    return _figure(
        "What each measure takes away, 1 Gbit/s",
        svg.bars(rows, ("computing", "waiting for rows"), unit="ms"),
        "From full fp16 rows fetched before each step to the base point, one measure after another.",
    )


def price_by_pace(run: Run) -> str:
    """Overhead against the time of a layer, by bands pinned."""
    series = [
        _prices(f"{pinned} pinned", run.along("paced", "pace_us", pinned_bands=pinned), lambda one: one.point.pace_us)
        for pinned in (0, 1, 2)
    ]
    return _figure(
        "Price against the device's pace",
        svg.plot(_with_points(series), x=Axis(label="us a layer"), y=PRICE),
        "A faster device leaves less time to hide a fetch in; pinned bands give it back.",
    )


def price_by_round_trip(run: Run) -> str:
    """Overhead against what the delaying transport really added."""
    points = [one for one in run.along("paced", "round_trip_ms") if one.point.round_trip_ms]
    series = _positive(
        _prices("base", points, lambda one: one.mean("link_reached", "added_ms") or one.point.round_trip_ms)
    )
    return _figure(
        "Price against added round trip",
        svg.plot(
            _with_points([series]), x=Axis(label="ms added, as reached", scale="log"), y=replace(PRICE, scale="log")
        ),
        "The delay is put in by a transport in the client's process; the axis shows what one row really took longer.",
    )


def price_by_link(run: Run) -> str:
    """Overhead against the bandwidth that the link reached, by form of the rows."""
    by_codes: dict[str, list[Measured]] = {}
    for one in run.points:
        usual = run.along("paced", "link", codes=one.point.codes) + run.along(
            "paced", "gbit_per_s", codes=one.point.codes
        )
        if one.point.is_networked and one in usual:
            by_codes.setdefault(one.point.codes, []).append(one)
    series = [
        _prices(codes, sorted(points, key=_bandwidth), _bandwidth)
        for codes, points in by_codes.items()
        if len(points) > 1
    ]
    return _figure(
        "Price against the link",
        svg.plot(_with_points(series), x=Axis(label="Gbit/s reached by 64 rows", scale="log2"), y=PRICE),
        "Links of network namespaces where the run was given them; else the delaying transport's (emulated).",
    )


def price_by_device_share(run: Run) -> str:
    """Overhead against the share of the table that is on the device."""
    cache = [one for one in run.along("paced", "cache_share") if one.point.policy == "static"]
    pinned = run.along("paced", "pinned_bands")
    series = [
        _prices("cache varied", cache, lambda one: one.device_share()),
        _prices("pinned bands varied", pinned, lambda one: one.device_share()),
    ]
    return _figure(
        "Price against device share",
        svg.plot(_with_points(series), x=Axis(label="share of the rows' bytes on the device", percent=True), y=PRICE),
        "Cached tokens and pinned bands together, as a share of the table as stored.",
    )


def rate_by_cache(run: Run) -> str:
    """Tokens a second against the cache, by batch."""
    series = []
    for batch in (1, 8, 64):
        points = run.along("paced", "cache_share", batch=batch)
        values = [(one.point.cache_share, one.mean("tokens_per_s") or 0.0) for one in points]
        series.append(Series(name=f"batch {batch}", points=values))
    return _figure(
        "Output tokens/s against the cache",
        svg.plot(
            _with_points(series),
            x=Axis(label="share of the tokens cached", percent=True),
            y=Axis(label="tokens/s", scale="log"),
        ),
        "Paced engine, 20 us a layer.",
    )


def price_by_batch(run: Run) -> str:
    """Overhead against the batch, by cache."""
    series = [
        _prices(f"cache {share:.0%}", run.along("paced", "batch", cache_share=share), lambda one: one.point.batch)
        for share in (0.0, 0.1, 0.5)
    ]
    return _figure(
        "Price against the batch",
        svg.plot(_with_points(series), x=Axis(label="sequences in a step", scale="log2"), y=PRICE),
        "A larger batch needs more rows in the same time, and finds more of them in common.",
    )


def predictions(run: Run) -> str:
    """Predicted against measured step times, where the cost model has added them."""
    note = "The cost model has its parameters from micro-benchmarks alone; on the line they agree."
    return _figure("Predicted against measured steps", _agreement(run, "step"), note)


def predicted_stalls(run: Run) -> str:
    """The same of what rows add to a step, which most steps hide."""
    note = f"Points below {FLOOR_US:.0f} us are within a step's noise; those below {_LEAST_US:g} us are drawn there."
    return _figure("Predicted against measured stalls", _agreement(run, "stall"), note)


def _agreement(run: Run, what: str) -> str:
    key = f"{what}_us"
    found = [(one, one.predicted[key]) for one in run.points if one.predicted is not None]
    series = Series(
        name="paced points",
        points=[(max(one.mean(key) or 0.0, _LEAST_US), max(predicted, _LEAST_US)) for one, predicted in found],
        labels=[one.name for one, _ in found],
        is_line=False,
    )
    return svg.plot(
        _with_points([series]),
        x=Axis(label=f"measured us of {what}", scale="log"),
        y=Axis(label=f"predicted us of {what}", scale="log"),
        diagonal=True,
    )


def _prices(name: str, points: Sequence[Measured], at: Callable[[Measured], float]) -> Series:
    prices = [one.price("codes_local") for one in points]
    return Series(
        name=name,
        points=[(at(one), price[0]) for one, price in zip(points, prices, strict=True)],
        intervals=[price[1:] for price in prices],
    )


def _positive(series: Series) -> Series:
    """The points that a logarithmic scale has."""
    kept = [index for index, (_, price) in enumerate(series.points) if price > 0]
    return replace(
        series,
        points=[series.points[index] for index in kept],
        intervals=[series.intervals[index] for index in kept],
    )


def _with_points(series: Sequence[Series]) -> list[Series]:
    return [one for one in series if one.points]


def _bandwidth(one: Measured) -> float:
    return max(one.mean("link_reached", "gbit_per_s") or _LOSS, _LOSS)


def _without_cache(run: Run, engine: EngineName, place: str) -> list[Measured]:
    """Places that have neither cache nor pinned bands, since their rows are on the device."""
    codes = {"codes": "full-float32"} if place == "computed" else {}
    return run.along(engine, "place", cache_share=0.0, pinned_bands=0, **codes)


def _split_ms(one: Measured) -> tuple[float, float]:
    """Milliseconds a token of the local step, and what came on top of it; means, since few steps wait."""
    local = one.mean("reference_itl_ms", "codes_local", "mean") or 0.0
    own = one.mean("itl_ms", "mean") or 0.0
    return min(local, own), max(0.0, own - local)


def _short(name: str, engine: str) -> str:
    first = name.removeprefix(f"{engine}: ").split(",")[0]
    return {"base": "memory nodes, TCP", "computed": "computed", "device": "device memory"}.get(
        first, PLACES[first].label if first in PLACES else first
    )


def _figure(title: str, chart: str, note: str) -> str:
    if not chart:
        return ""
    return f"<figure><h3>{escape(title)}</h3>{chart}<figcaption>{escape(note)}</figcaption></figure>"
