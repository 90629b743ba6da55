"""What carries frames: one connection to one peer."""

from __future__ import annotations

from typing import Protocol

Address = tuple[str, int]
"""Host and port."""


class Link(Protocol):
    """A connected byte stream. One thread uses it."""

    def send(self, frame: bytes) -> None:
        """Hand over a whole request; returns when the system has taken it.

        Raises:
            LinkError: the peer is gone, or takes nothing for the time the link was made with.
        """

    def recv_into(self, *views: memoryview) -> int:
        """Bytes received now into `views`, one after another from the start; 0 where none are there yet.

        Fewer may come than are there; the views together are not empty.

        Raises:
            LinkError: the peer has closed the connection.
        """

    def wait_readable(self, timeout_s: float) -> None:
        """Return when `recv_into` may find something, at the latest after `timeout_s`."""

    def close(self) -> None:
        """End the connection; closing twice changes nothing."""


class Transport(Protocol):
    """Makes links."""

    def connect(self, address: Address, timeout_s: float) -> Link:
        """A link to the peer at `address`.

        Raises:
            LinkError: nobody is there, or does not answer in time.
        """
