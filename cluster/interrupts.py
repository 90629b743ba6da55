"""Ctrl-C that is answered at chosen points only, so that nothing is started and forgotten in between."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_POLL_S = 0.05


class Interrupted(KeyboardInterrupt):
    """A signal asked this process to end; `exit_code` is what a shell expects for it (130 for Ctrl-C)."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 128 + signum


class Interrupts:
    """While entered, SIGINT, SIGTERM and SIGHUP are noted; `check` and `wait` raise `Interrupted` for them.

    Whatever lies between two checks is done whole: a process is started and recorded, or neither. Use from the main
    thread, where Python handles signals.
    """

    def __init__(self) -> None:
        self._signum = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for signum in SIGNALS:
            self._before[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def check(self) -> None:
        """Raise `Interrupted` if a signal has come."""
        if self._signum:
            raise Interrupted(self._signum)

    def wait(self, done: Callable[[], bool], *, timeout_s: float) -> bool:
        """Wait until `done()`; False when `timeout_s` passed first. Raises `Interrupted` within 50 ms of a signal."""
        end = time.monotonic() + timeout_s
        while True:
            self.check()
            if done():
                return True
            if time.monotonic() > end:
                return False
            time.sleep(_POLL_S)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if not self._signum and sys.stderr.isatty():
            sys.stderr.write("\nending what was started ...\n")
        self._signum = self._signum or signum
