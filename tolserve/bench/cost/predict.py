"""What the cost model says of a paced point before it is measured.

Its parameters are the fetches of the point's place, timed alone (`cost_model.calibrate`), once for each place, form of
rows, link, batch and pinned bands; an added round trip is added. How many rows a step has to fetch comes from the
stream and the cache without any clock. No step of the paced engine takes part.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tolserve.bench.cost.figures import rounded
from tolserve.bench.cost.places import Asked
from tolserve.bench.cost.point import Point
from tolserve.bench.cost.sources import cached_source, requested_bands
from tolserve.bench.cost_model.arrivals import Measured
from tolserve.bench.cost_model.calibrate import calibrate
from tolserve.bench.cost_model.hits import Misses
from tolserve.bench.cost_model.timeline import expected_step
from tolserve.bench.paced_rows import DeviceSlots
from tolserve.bench.streams import TokenStream

_CALIBRATED_SHARE = 0.1
_LIMIT_S = 1.0
"""Of the fetches of one number of rows."""


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """Predicts points; keeps what it has calibrated.

    Attributes:
        rounds: fetches timed for each number of rows.
        known: calibrations by what they depend on.
    """

    rounds: int
    known: dict[Point, Measured]

    def predict(self, asked: Asked, stream: TokenStream, *, num_steps: int) -> dict[str, float]:
        """`step_us` and `stall_us` of a paced point, for the first `num_steps` of its stream."""
        point, spec = asked.point, asked.material.spec
        bands = requested_bands(asked)
        measured = replace(self._calibrated(asked), round_trip_s=point.round_trip_ms * 1e-3)
        pinned = tuple(band.index for band in spec.bands if band.index not in bands)
        if not point.overlap:
            last = measured.arrivals_NQB.max(axis=2, keepdims=True)
            measured, pinned = replace(measured, arrivals_NQB=np.broadcast_to(last, measured.arrivals_NQB.shape)), ()
        segments_s = np.array([len(band.layers) for band in spec.bands]) * point.pace_us * 1e-6
        misses = replayed(asked, stream, stream.batches(point.batch, num_steps))
        step = expected_step(segments_s, misses, measured, on_device=pinned)
        return {"step_us": rounded(step.step_s * 1e6), "stall_us": rounded(max(0.0, step.stall_s) * 1e6)}

    def _calibrated(self, asked: Asked) -> Measured:
        """The fetches of a point's place, whatever stream, pace, cache and distance it has."""
        point = asked.point
        alike = Point(
            factor="base",
            place=point.place,
            codes=point.codes,
            link=point.link,
            gbit_per_s=point.gbit_per_s,
            num_nodes=point.num_nodes,
            batch=point.batch,
            pinned_bands=point.pinned_bands,
            cache_share=_CALIBRATED_SHARE,
        )
        if alike not in self.known:
            vocab_size = asked.material.spec.vocab_size
            by_id = np.arange(vocab_size, 0, -1)
            with cached_source(replace(asked, point=alike, counts=by_id), by_id, DeviceSlots) as source:
                self.known[alike] = calibrate(
                    source,
                    batch=point.batch,
                    bands=requested_bands(asked),
                    num_bands=len(asked.material.spec.bands),
                    rounds=self.rounds,
                    limit_s=_LIMIT_S,
                )
        return self.known[alike]


def replayed(asked: Asked, stream: TokenStream, tokens_SB: NDArray[np.int64]) -> Misses:
    """Distinct rows that steps have to fetch behind the point's cache, by letting it see the stream."""
    bands = requested_bands(asked)
    if not bands:
        return Misses(probability_N=np.ones(1))
    counts = []
    in_memory = replace(asked, point=replace(asked.point, place="host"))
    with cached_source(in_memory, stream.counts, DeviceSlots) as source:
        for row in tokens_SB:
            handle = source.start(np.ascontiguousarray(row), bands=bands)
            for band in bands:
                source.arrive(handle, band)
            counts.append(sum(len(stretch.ids) for stretch in handle.stretches))
            source.release(handle)
    return Misses.counted(counts)
