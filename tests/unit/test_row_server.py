"""A row server outlives what a request does to its responder, and when it ends it takes no further connections."""

from __future__ import annotations

import asyncio
import socket
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from row_kit import (
    IDENTITY,
    TIMEOUT_S,
    ask,
    partition_store,
    random_rows,
    row_spec,
    rows_frame,
    rows_payload,
    wait_until,
)

from tolserve.memory.service import RowService
from tolserve.on_ray.memory_node import MemoryNodeDeployment
from tolserve.transport.errors import LinkError
from tolserve.transport.server import RowServer
from tolserve.transport.tcp import TcpTransport

SPEC = row_spec()
ROWS = random_rows(SPEC)


class Fragile(RowService):
    """Fails as no one foresaw on requests for token 13, at once or, for token 14, when its rows are gathered."""

    def rows(self, header: Any, ids: Any) -> Any:
        if 13 in ids:
            raise KeyError(13)
        answer = super().rows(header, ids)
        return answer._replace(pieces=self._fail()) if 14 in ids else answer

    def _fail(self) -> Any:
        yield [memoryview(b"1")]
        raise ZeroDivisionError


class Mortal(RowServer):
    """Its loop fails once `doomed` is set."""

    doomed = False

    def _look(self, wait_s: float) -> Any:
        if self.doomed:
            raise MemoryError
        return super()._look(wait_s)


def made(server: type[RowServer]) -> Any:
    started = server(Fragile(partition_store(SPEC, ROWS)))
    started.start()
    return started


@pytest.mark.parametrize("token", [13, 14])
def test_an_unforeseen_fault_drops_that_client_only(token: int) -> None:
    server = made(RowServer)
    good, bad = (TcpTransport().connect(server.address, TIMEOUT_S) for _ in range(2))
    frame = rows_frame(1, np.arange(5), (0, 2), identity=IDENTITY)
    expected = rows_payload(ROWS, np.arange(5), (0, 2))
    assert ask(good, frame)[1] == expected
    with pytest.raises(LinkError):
        ask(bad, rows_frame(1, np.array([token]), (0, 2), identity=IDENTITY))
    assert ask(good, frame)[1] == expected
    assert server.alive
    server.stop()
    assert not server.alive


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_server_whose_thread_ends_hangs_up_and_is_found_dead() -> None:
    server = made(Mortal)
    healthy = MemoryNodeDeployment.check_health(SimpleNamespace(_node=server))  # type: ignore[arg-type]
    asyncio.run(healthy)
    with socket.create_connection(server.address, timeout=TIMEOUT_S) as peer:
        server.doomed = True
        assert peer.recv(1) == b""
    wait_until(lambda: not server.alive)
    with pytest.raises(RuntimeError, match=r"row server at .* ended"):
        asyncio.run(MemoryNodeDeployment.check_health(SimpleNamespace(_node=server)))  # type: ignore[arg-type]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(server.address, timeout=TIMEOUT_S)
    server.stop()
