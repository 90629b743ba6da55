"""Runs an ASGI application on a port of its own, in a thread with its own event loop."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Awaitable, Callable

import uvicorn

from tolserve.app import App

_log = logging.getLogger(__name__)

START_TIMEOUT_S = 60.0
_SHUTDOWN_S = 2
_BACKLOG = 2048


class HttpServer:
    """Serves what `make_app` makes in the server's own loop; returns from the constructor when it accepts.

    `background`, if given, runs in the same loop for as long as the server does; its end ends the server.

    Attributes:
        address: (host, port) that it listens on.
        loop: the event loop that the application runs on.

    Raises:
        OSError: the port is taken or the host is no address of this machine.
        TimeoutError: the application was not made in time.
    """

    def __init__(
        self,
        make_app: Callable[[], Awaitable[App]],
        *,
        host: str,
        port: int,
        background: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._make_app = make_app
        self._background = background
        try:
            self._socket = socket.create_server((host, port), backlog=_BACKLOG)
        except OSError as error:
            raise OSError(
                error.errno, f"cannot listen on {host}:{port}: {error.strerror}; give another port"
            ) from error
        self.address: tuple[str, int] = self._socket.getsockname()[:2]
        self._server: uvicorn.Server | None = None
        self.loop: asyncio.AbstractEventLoop
        self._accepts = threading.Event()
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)
        self._thread.start()
        in_time = self._accepts.wait(START_TIMEOUT_S)
        if self.failure is not None:
            raise self.failure
        if not in_time:
            raise TimeoutError(f"the HTTP server on {host}:{port} did not start within {START_TIMEOUT_S:g} s")

    @property
    def alive(self) -> bool:
        """Whether requests are answered."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Stop accepting, give open requests a moment, end the thread."""
        if self._server is not None:
            self._server.should_exit = True
        self._thread.join()

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=uvicorn.Config(_no_app).get_loop_factory()) as runner:
                runner.run(self._serve())
        except BaseException as error:  # noqa: BLE001 - the constructor or the health check passes it on
            self.failure = error
            _log.exception("the HTTP server ended")
        finally:
            self._socket.close()
            self._accepts.set()

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        config = uvicorn.Config(
            await self._make_app(),
            lifespan="off",
            access_log=False,
            log_config=None,
            timeout_graceful_shutdown=_SHUTDOWN_S,
        )
        self._server = uvicorn.Server(config)
        serving = asyncio.create_task(self._server.serve([self._socket]))
        while not self._server.started and not serving.done():  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.005)
        self._accepts.set()
        if self._background is None:
            await serving
            return
        background = asyncio.ensure_future(self._background())
        await asyncio.wait([serving, background], return_when=asyncio.FIRST_COMPLETED)
        self._server.should_exit = True
        background.cancel()
        await serving
        if background.done() and not background.cancelled():
            background.result()


async def _no_app(scope: object, receive: object, send: object) -> None:
    """What a configuration is asked for an event loop with."""
