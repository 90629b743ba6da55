"""A transport that is as far away and as narrow as one wants: for measuring what a network would cost, and for tests.

The whole round trip is put before the request leaves, so that answers are still received straight into their place. A
request is sent by the first call on the link after its time has come: a client that looks seldom sees a little more
delay than asked for, never less.
"""

from __future__ import annotations

import time
from collections import deque

from tolserve.transport.errors import LinkError
from tolserve.transport.link import Address, Link, Transport


class DelayedLink:
    """Holds requests back for `round_trip_s` and hands over at most `bytes_per_s` (0: no limit)."""

    _BURST_S = 0.25e-3

    def __init__(self, link: Link, round_trip_s: float, bytes_per_s: float) -> None:
        self._link = link
        self._round_trip_s = round_trip_s
        self._bytes_per_s = bytes_per_s
        self._held: deque[tuple[float, bytes]] = deque()
        self._credit = 0.0
        self._credited_at = time.perf_counter()
        self._open = True

    def send(self, frame: bytes) -> None:
        """See `Link.send`."""
        if not self._open:
            raise LinkError("the delayed link is closed")
        self._held.append((time.perf_counter() + self._round_trip_s, frame))

    def recv_into(self, *views: memoryview) -> int:
        """See `Link.recv_into`."""
        now = time.perf_counter()
        self._send_due(now)
        if not self._bytes_per_s:
            return self._link.recv_into(*views)
        burst = max(1.0, self._bytes_per_s * self._BURST_S)
        self._credit = min(burst, self._credit + (now - self._credited_at) * self._bytes_per_s)
        self._credited_at = now
        if self._credit < 1:
            return 0
        view = next(view for view in views if len(view))
        count = self._link.recv_into(view[: int(self._credit)])
        self._credit -= count
        return count

    def wait_readable(self, timeout_s: float) -> None:
        """See `Link.wait_readable`."""
        now = time.perf_counter()
        self._send_due(now)
        if self._held:
            time.sleep(min(timeout_s, max(0.0, self._held[0][0] - now)))
        elif self._bytes_per_s and self._credit < 1:
            time.sleep(min(timeout_s, 1 / self._bytes_per_s + 1e-4))
        else:
            self._link.wait_readable(timeout_s)

    def close(self) -> None:
        """See `Link.close`."""
        self._open = False
        self._link.close()

    def _send_due(self, now: float) -> None:
        while self._held and self._held[0][0] <= now:
            self._link.send(self._held.popleft()[1])


class Delayed:
    """A transport whose links are `DelayedLink`s over those of `inner`.

    Args:
        round_trip_s: added to every request.
        bytes_per_s: bandwidth towards the client; 0 is unlimited.

    Raises:
        ValueError: a negative number.
    """

    def __init__(self, inner: Transport, *, round_trip_s: float = 0.0, bytes_per_s: float = 0.0) -> None:
        if round_trip_s < 0 or bytes_per_s < 0:
            raise ValueError(f"round_trip_s {round_trip_s} and bytes_per_s {bytes_per_s} must not be negative")
        self._inner = inner
        self._round_trip_s = round_trip_s
        self._bytes_per_s = bytes_per_s

    def connect(self, address: Address, timeout_s: float) -> DelayedLink:
        """See `Transport.connect`."""
        return DelayedLink(self._inner.connect(address, timeout_s), self._round_trip_s, self._bytes_per_s)
