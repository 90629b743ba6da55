"""Measuring a point of the paced engine: steps in turn with its references, then its fetches alone, byte for byte."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tolserve.bench.cost.figures import REFERENCES, latency, prices, rounded, shares
from tolserve.bench.cost.places import Asked, resident_bytes
from tolserve.bench.cost.prices import Rents, Slo
from tolserve.bench.cost.sources import as_asked, cached_source, device_bytes, host_source, requested_bands
from tolserve.bench.disturbed import Turns
from tolserve.bench.paced import PacedEngine, StepTime
from tolserve.bench.paced_rows import DeviceSlots
from tolserve.bench.streams import TokenStream
from tolserve.memory.cached import CachedSource

DENSE_FACTOR = 21.50 / 14.42
"""Time of a dense layer over that of a layer with looked-up rows: the paper's decode on an A100."""
_WARM_STEPS = 10
_LEAST_PAIRS = 30
_CHECKED_STEPS = 60


def measure(
    asked: Asked, stream: TokenStream, *, num_pairs: int, limit_s: float, rents: Rents, slo: Slo
) -> dict[str, Any]:
    """All figures of a point, from at most `num_pairs` steps or `limit_s`, and at least 30 steps."""
    point, spec = asked.point, asked.material.spec
    tokens = stream.batches(point.batch, num_pairs + _WARM_STEPS + _CHECKED_STEPS)
    tokens, unseen = tokens[:-_CHECKED_STEPS], tokens[-_CHECKED_STEPS:]
    with cached_source(asked, stream.counts, DeviceSlots) as source:
        taken = _alternate(asked, source, tokens, limit_s)
        alone = _fetch_alone(asked, source, unseen)
    turns = taken.undisturbed
    own = [turn["rows"].step_s for turn in turns]
    references = {name: [turn[name].step_s for turn in turns] for name in REFERENCES}
    ideal_s = point.pace_us * 1e-6 * sum(len(band.layers) for band in spec.bands)
    mean_s, local_s = float(np.mean(own)), float(np.mean(references["codes_local"]))
    held = resident_bytes(point, spec, device_bytes(asked))
    rate = point.batch / mean_s
    return {
        "num_pairs": len(own),
        **taken.counts(),
        "ttft_ms": None,
        "itl_ms": latency(own),
        "reference_itl_ms": {name: latency(values) for name, values in references.items()},
        "tokens_per_s": rounded(rate),
        "goodput_tokens_per_s": rounded(rate * float(np.mean(np.array(own) <= slo.slack * ideal_s))),
        "rows_a_step": point.batch,
        "unique_rows_a_step": rounded(np.mean([len(np.unique(row)) for row in tokens[: len(own)]])),
        "bytes_a_token": rounded(np.mean([turn["rows"].bytes_moved for turn in turns]) / point.batch),
        **alone,
        "stall_us": rounded((mean_s - local_s) * 1e6),
        "step_us": rounded(mean_s * 1e6),
        "stall_share": rounded(max(0.0, mean_s - local_s) / mean_s),
        "resident_bytes": held,
        "dollars_per_million": rounded(
            rents.per_million(
                "paced",
                rate,
                device_bytes=held["attention_node"],
                node_bytes=sum(held["memory_nodes"]) + held["host"],
            )
        ),
        "price": prices(own, references),
        "median_ms": rounded(float(np.median(own)) * 1e3),
    }


def _alternate(
    asked: Asked, source: CachedSource, tokens: NDArray[np.int64], limit_s: float
) -> Turns[dict[str, StepTime]]:
    """Steps of the point and its references in an order that turns, warm ones left out."""
    point, spec = asked.point, asked.material.spec
    num_layers = tuple(len(band.layers) for band in spec.bands)
    pace_s = point.pace_us * 1e-6
    bands = requested_bands(asked)
    rows = as_asked(point.overlap, source)
    with ExitStack() as stack:
        engines = {"rows": PacedEngine(tokens, pace_s=pace_s, num_layers=num_layers, source=rows, bands=bands)}
        for name in REFERENCES:
            own_s = pace_s * (DENSE_FACTOR if name == "dense" else 1.0)
            engines[name] = PacedEngine(tokens, pace_s=own_s, num_layers=num_layers)
        for engine in engines.values():
            stack.callback(engine.close)
        names = list(engines)
        turns: Turns[dict[str, StepTime]] = Turns()
        began = time.monotonic()
        for turn in range(len(tokens)):
            if turn >= _WARM_STEPS + _LEAST_PAIRS and time.monotonic() - began > limit_s:
                break
            first = turn % len(names)
            turns.add({name: engines[name].step() for name in names[first:] + names[:first]})
    turns.forget(_WARM_STEPS)
    return turns


def _fetch_alone(asked: Asked, source: CachedSource, tokens: NDArray[np.int64]) -> dict[str, Any]:
    """The steps' fetches by themselves: how long they take, where rows were found, and that the bytes are right.

    Rows that are found in the cache are the device's and have no bytes here; all others are compared.
    """
    bands = requested_bands(asked)
    expected = host_source(asked)
    took_s: list[float] = []
    hits: dict[str, float] = {}
    is_equal, num_compared = True, 0
    for row in tokens:
        ids = np.unique(np.ascontiguousarray(row))
        began = time.perf_counter()
        handle = source.start(ids, bands=bands)
        for band in bands:
            source.arrive(handle, band)
        if handle.stretches:
            took_s.append(time.perf_counter() - began)
        for tier, count in handle.bill.hits_by_tier.items():
            hits[tier] = hits.get(tier, 0) + count
        received = handle.index < source.num_staging
        if received.any():
            local = expected.start(ids[received], bands=bands)
            for band in bands:
                same = np.array_equal(source.pool(band)[handle.index[received]], expected.wait(local, band))
                is_equal = is_equal and same
            expected.release(local)
            num_compared += int(received.sum())
        source.release(handle)
    return {
        "fetch_ms": latency(took_s),
        "hits": shares(hits),
        "rows_compared": num_compared,
        "tokens_equal": is_equal,
    }
