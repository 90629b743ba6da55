"""SIGTERM that ends a command as Ctrl-C does."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interruption:
    """Which signal interrupted: it is noted, since whoever waits in Ray gets a KeyboardInterrupt of Ray's own."""

    def __init__(self) -> None:
        self._is_terminated = False

    @property
    def exit_code(self) -> int:
        """What a shell expects after it: 143 for SIGTERM, 130 for Ctrl-C."""
        return 128 + (signal.SIGTERM if self._is_terminated else signal.SIGINT)

    def raise_for(self, signum: int, frame: FrameType | None) -> None:
        """Answer SIGTERM; a signal handler."""
        self._is_terminated = True
        raise KeyboardInterrupt


@contextmanager
def sigterm_as_interrupt() -> Iterator[Interruption]:
    """SIGTERM raises KeyboardInterrupt in the main thread, which has to enter this; what answered it is put back."""
    interruption = Interruption()
    before = signal.signal(signal.SIGTERM, interruption.raise_for)
    try:
        yield interruption
    finally:
        signal.signal(signal.SIGTERM, before)
