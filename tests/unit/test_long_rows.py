"""Long rows leave from where they lie in the node's memory."""

from __future__ import annotations

import numpy as np
import pytest
from row_kit import TIMEOUT_S, network, partition_store, random_rows, row_spec, serve_store

from tolserve.memory.client import PartitionedClient

SPEC = row_spec(vocab_size=200, widths=(8192, 9000))


@pytest.mark.parametrize("where", ["tcp", "in-process"])
@pytest.mark.parametrize("num_ids", [1, 7, 700])
def test_long_rows_come_whole_however_many(where: str, num_ids: int) -> None:
    """700 rows are more buffers than the system takes at once."""
    rows = random_rows(SPEC)
    ids = np.random.default_rng(3).integers(0, SPEC.vocab_size, num_ids)
    with network(where) as net:
        address = serve_store(net, partition_store(SPEC, rows))
        client = PartitionedClient(SPEC, [[address]], transport=net.transport)
        client.wait_connected(TIMEOUT_S)
        out = {band.index: np.empty((num_ids, band.row_bytes), np.uint8) for band in SPEC.bands}
        fetch = client.request(ids, (0, 1))
        client.receive(fetch, {band: memoryview(part).cast("B") for band, part in out.items()})
        client.arrive(fetch, 1)
        client.close()
    for band, part in out.items():
        assert np.array_equal(part, rows[band][ids])
