"""The page's sentences that have numbers in them."""

from __future__ import annotations

from html import escape
from typing import Any

from tolserve.bench.cost.described import described
from tolserve.bench.cost.point import ENGINES
from tolserve.bench.cost.report.data import Run
from tolserve.bench.cost.streams import STREAMS
from tolserve.bench.cost.summary import ABSENT_MODEL, compared, repeatability, tokens_equal_all
from tolserve.bench.cost.terminal import percent
from tolserve.bench.cost_model.check import FLOOR_US, errors

QUESTION = (
    "If a model's memory sits on the other side of a network, what does each token pay, "
    "and what makes that price go away?"
)


def answer(run: Run) -> str:
    """One sentence with its number, from the base point and the ladder; says so where neither was measured."""
    one = run.base("paced")
    if one is None:
        return "This run has no base point of the paced engine; its points are below."
    mean, low, high = one.price("codes_local")
    point = one.point
    text = (
        f"With {point.codes} rows on a memory node behind TCP on loopback, at {point.pace_us:g} us a layer and "
        f"{point.batch} sequences a step, a token pays {percent(mean)} [{percent(low)}, {percent(high)}] over rows "
        f"on the device while {100 * one.device_share():.0f} % of the table's bytes are there"
    )
    steps = list(run.ladder())
    if len(steps) > 1:
        first, last = (step.price("codes_local")[0] for step in (steps[0], steps[-1]))
        text += (
            f"; over 1 Gbit/s, full fp16 rows fetched before each step cost {percent(first)}, and overlap, "
            f"compression, cache and a pinned band bring that to {percent(last)}"
        )
    return text + "."


def ladder(run: Run) -> str:
    """A list: what each measure leaves of the price."""
    names = (
        "full fp16 rows, fetched before each step",
        "overlap",
        "rank 512 in int8",
        "10 % cached",
        "first band pinned",
    )
    items = [
        f"<li>{escape(name)}: {percent(one.price('codes_local')[0])}</li>"
        for name, one in zip(names, run.ladder(), strict=False)
    ]
    return (
        f"<p>What each measure leaves, one after another, over 1 Gbit/s:</p><ul>{''.join(items)}</ul>" if items else ""
    )


def method(run: Run) -> str:
    """How it was measured."""
    streams = sorted({one.point.stream for one in run.points})
    engines = sorted({one.point.engine for one in run.points})
    points = run.result["points"]
    rents, slo = run.result.get("rents", {}), run.result.get("slo", {})
    parts = [
        "Every point is taken in turn with its three references: the same codes in device memory, full fp16 rows in "
        "device memory, and the dense FFN. Prices are means of paired differences over the reference's mean. All "
        "points are swept over twice; figures are means of the two sweeps, and an interval goes from the lowest bound "
        "of their 95 % intervals to the highest. " + _left_out(run),
        "The paced engine stands for a GPU: the device is a timeline on which a layer takes the given time, the "
        "scheduler, cache, client and network are real and work beside it. Its dense reference takes 1.49 times as "
        "long a layer, the paper's own ratio on an A100; its two local references differ in nothing that a timeline "
        "has, so their difference is noise. It only decodes: time to the first token is of the real engines. Received "
        "rows are compared byte for byte; the real engines' tokens are compared with those of the same table's rows on "
        "the device.",
        f"Repeatability (two medians within 10 %): {repeatability(points)}{_by_engine(run)}. Tokens equal "
        f"everywhere: {tokens_equal_all(points)}.",
        _model(run),
        "Memory is what a table of that shape takes; the paced engine's random rows repeat within 256 MiB on both "
        "sides.",
        f"Dollars: {', '.join(f'{name} {value}' for name, value in rents.items())}. SLO: "
        f"{', '.join(f'{name} {value}' for name, value in slo.items())}.",
    ]
    lists = [f"<li>{escape(ENGINES[engine])}</li>" for engine in engines]
    lists += [f"<li>{escape(name)}: {escape(STREAMS[name].label)}</li>" for name in streams]
    return "".join(f"<p>{escape(part)}</p>" for part in parts) + f"<ul>{''.join(lists)}</ul>"


def machine(run: Run) -> str:
    """What it was measured on, and what the links carried."""
    result = run.result
    about = result.get("machine", {})
    parts = [
        f"{about.get('cpu')}, {about.get('cores')} cores, {about.get('memory_bytes', 0) / 2**30:.0f} GiB, "
        f"{about.get('kernel')}; load {', '.join(f'{one:.2f}' for one in about.get('load_average', []))} at the start.",
        ", ".join(f"{name} {value}" for name, value in result.get("versions", {}).items()),
        f"{result.get('command')}, seed {result.get('seed')}" + (", a quick run" if result.get("quick") else "") + ".",
        *(
            f"Link {name}, bare socket: {found['gbit_per_s']:g} Gbit/s, round trip {found['round_trip_us']:g} us."
            for name, found in result.get("links", {}).items()
        ),
    ]
    return "".join(f"<p class=soft>{escape(part)}</p>" for part in parts)


def from_descriptions(result: dict[str, Any]) -> str:
    """How far the model is off that answers for other machines; empty where nothing can be said."""
    found = described(result)
    if not found:
        return ""
    off = errors(found)
    return (
        f"As it answers for other machines, from a link's round trip and bandwidth and one row's cost alone: stalls "
        f"off by {off['model_median_stall_error']:.0%}, steps by {off['model_median_step_error']:.1%} (medians over "
        f"{len(found)} networked points)."
    )


def _left_out(run: Run) -> str:
    """How many turns were disturbed."""
    sweeps = [sweep for one in run.points for sweep in one.sweeps]
    lost, kept = (sum(sweep.get(name, 0) for sweep in sweeps) for name in ("num_left_out", "num_pairs"))
    return (
        "Turns in which another process or the host of a virtual machine took the core away, by the system's own "
        f"counts, are left out, whichever contestant was computing: {lost:,} of {lost + kept:,}."
    )


def _by_engine(run: Run) -> str:
    """The same of each engine: a paced step is mostly the timeline's own."""
    shares = []
    for engine in ENGINES:
        share = repeatability([one for one in run.result["points"] if one["settings"]["engine"] == engine])
        if share is not None:
            shares.append(f"{engine} {share:.2f}")
    return f" ({', '.join(shares)})" if shares else ""


def _model(run: Run) -> str:
    """How far the cost model is off the paced points, beside a model that knows nothing, and where most."""
    found = compared(run.result["points"])
    if not found:
        return f"Model errors (medians): {ABSENT_MODEL}."
    off = errors(found)
    worst = [f"{one['name']} ({one['stall_error']:.0%}: {one['reason']})" for one in off["worst"]]
    text = (
        f"Model errors (medians): stall {off['model_median_stall_error']}, step {off['model_median_step_error']}. Most "
        f"points hide their rows: a model that always says no stall would be off by {off['no_stall_error']:.0%} and "
        f"{off['no_stall_step_error']:.1%}."
    )
    if off["num_large"]:
        text += (
            f" Over the {off['num_large']} points whose stall is at least {FLOOR_US:.0f} us, ours is off by "
            f"{off['large_stall_error']:.0%}."
        )
    return f"{text} {from_descriptions(run.result)} The cost model is furthest off the stall of {'; '.join(worst)}."
