"""Random rows for benches: in this process, and behind TCP in a process of their own.

`python -m tolserve.bench.row_process` serves the rows that its standard input describes and ends with it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from tolserve.memory.cached import CachedSource
from tolserve.memory.client import PartitionedClient
from tolserve.memory.partition import Partition
from tolserve.memory.service import RowService
from tolserve.memory.spec import RowSpec
from tolserve.memory.store import RamStore
from tolserve.transport.server import RowServer

_REPEATED_ROWS = 1024
_START_TIMEOUT_S = 60.0


def random_store(spec: RowSpec) -> RamStore:
    """Rows of every token, small numbers of the bands' type; every 1,024 tokens they repeat."""
    store = RamStore.empty(spec, Partition())
    draw = np.random.default_rng(0)
    for band, rows in zip(spec.bands, store.bands, strict=True):
        columns = sum(band.ranks)
        values = (draw.standard_normal((_REPEATED_ROWS, columns)) * 0.02).astype(np.float32)
        part = _encode(values, band.dtype)
        for first in range(0, len(rows), _REPEATED_ROWS):
            rows[first : first + _REPEATED_ROWS] = part[: len(rows) - first]
    return store


def _encode(
    values: np.ndarray[tuple[int, int], np.dtype[np.float32]], dtype: str
) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    if dtype == "bfloat16":
        return np.ascontiguousarray((values.view(np.uint32) >> 16).astype(np.uint16)).view(np.uint8)
    return np.ascontiguousarray((values * 127 if dtype == "int8" else values).astype(dtype)).view(np.uint8)


@contextmanager
def remote_rows(spec: RowSpec, num_staging: int) -> Iterator[CachedSource]:
    """A source, without a cache, of the rows of `random_store(spec)` in another process on this machine."""
    shape = {
        "num_layers": sum(len(band.layers) for band in spec.bands),
        "layers_per_band": len(spec.bands[0].layers),
        "rank": spec.bands[0].ranks[0],
        "dtype": spec.bands[0].dtype,
        "vocab_size": spec.vocab_size,
    }
    child = subprocess.Popen(
        [sys.executable, "-m", "tolserve.bench.row_process"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdin.write(json.dumps(shape) + "\n")
        child.stdin.flush()
        host, port = json.loads(child.stdout.readline())
        client = PartitionedClient(spec, [[(host, port)]])
        client.wait_connected(_START_TIMEOUT_S)
        source = CachedSource(client, num_staging=num_staging)
        try:
            yield source
        finally:
            source.close()
    finally:
        child.stdin.close()
        child.wait(timeout=_START_TIMEOUT_S)
        child.stdout.close()


def main() -> None:
    """Serve until standard input ends."""
    spec = RowSpec.uniform(**json.loads(sys.stdin.readline()))
    server = RowServer(RowService(random_store(spec)))
    server.start()
    print(json.dumps(server.address), flush=True)
    sys.stdin.read()
    server.stop()


if __name__ == "__main__":
    main()
