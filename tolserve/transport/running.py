"""The life of a server of any transport: begun in a thread or in the caller's, woken, and ended once."""

from __future__ import annotations

import contextlib
import socket
import threading
from abc import ABC, abstractmethod


class Running(ABC):
    """`start` runs it in a thread of its own, `run` in the caller's; both end after `stop` or `request_stop`.

    Attributes:
        thread_name: of the thread that `start` makes.
    """

    thread_name: str

    def __init__(self) -> None:
        self._wake, self._wake_end = socket.socketpair()
        self._wake.setblocking(False)
        self._wake_end.setblocking(False)
        self._thread: threading.Thread | None = None
        self._stopping = False

    @abstractmethod
    def run(self) -> None:
        """Serve until `stop`, then `_close`."""

    @abstractmethod
    def _close(self) -> None:
        """End every connection and the port, and close what wakes it; closing twice changes nothing."""

    @property
    def alive(self) -> bool:
        """Whether the thread that `start` made serves."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Serve in a thread."""
        self._thread = threading.Thread(target=self.run, name=self.thread_name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End every connection and the thread; stopping twice changes nothing."""
        self.request_stop()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        else:
            self._close()

    def request_stop(self) -> None:
        """Let `run` return soon; may be called by a signal handler."""
        if not self._stopping:
            self._stopping = True  # first: `run` is woken once, and looks for it then
            self.wake()

    def wake(self) -> None:
        """Something that `run` waits for may be there; any thread may call this."""
        with contextlib.suppress(OSError):  # enough is there to wake it, or `run` has ended
            self._wake.send(b"x")
