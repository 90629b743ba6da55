"""Rows on their way: bands that come at the same moment from two threads."""

from __future__ import annotations

import logging
from concurrent.futures import Future

import numpy as np
import pytest

from tolserve.memory.row_reads import RowRead, RowReads
from tolserve.memory.spec import Rows

ROWS = np.arange(6, dtype=np.uint8).reshape(2, 3)


def watched(num_bands: int) -> tuple[RowReads, list[Future[Rows]]]:
    """Reads of one range a band, and the futures that bring them."""
    ranges = [RowRead(band=band, places=np.arange(2)) for band in range(num_bands)]
    reads = RowReads(ranges, tuple(range(num_bands)))
    futures: list[Future[Rows]] = [Future() for _ in ranges]
    for read, future in zip(ranges, futures, strict=True):
        reads.watch(read, future)
    return reads, futures


def test_a_band_that_comes_while_another_is_told_of_ends_the_reads_once(caplog: pytest.LogCaptureFixture) -> None:
    reads, (first, last) = watched(2)
    reads.arrived[0].add_done_callback(lambda _: last.set_result(ROWS))
    with caplog.at_level(logging.ERROR):
        first.set_result(ROWS)
    assert reads.done.result(0) is None and not caplog.records
    out = np.zeros_like(ROWS)
    reads.take(1, out)
    assert np.array_equal(out, ROWS)


def test_a_fault_while_a_band_is_told_of_is_the_end_of_the_others(caplog: pytest.LogCaptureFixture) -> None:
    reads, (first, last) = watched(2)
    reads.arrived[0].add_done_callback(lambda _: last.set_exception(OSError("the store is gone")))
    with caplog.at_level(logging.ERROR):
        first.set_result(ROWS)
    assert reads.arrived[0].result(0) is None and not caplog.records
    for end in (reads.arrived[1], reads.done):
        with pytest.raises(OSError, match="the store is gone"):
            end.result(0)
