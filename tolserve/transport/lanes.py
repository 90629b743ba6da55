"""Connections that the compiled helper serves, and how they come to it and leave it.

A connection begins with Python. Once Python has answered a request for rows of a table version that the helper has, the
helper answers those that follow as long as they are without fault; at the first that is not, or is for another version,
Python has the connection back, with what was received, and refuses or answers as it always does. So nothing is decided
in two places: the helper knows the right request only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray

from tolserve.native import compiled


@dataclass(frozen=True, kw_only=True)
class RowMemory:
    """Rows of one partition of a table version in this process's memory.

    Attributes:
        bands: uint8 [rows, row_bytes] by band, contiguous; they stay where they are.
        num_cyclic: row(id) is the one at id modulo this; 0 is the partition's blocks one after another.
    """

    identity: bytes
    vocab_size: int
    partition: tuple[int, int]
    bands: list[NDArray[Any]]
    num_cyclic: int = 0


class Lanes(Protocol):
    """What a responder may do with `Lanes` of tolserve/native/lanes.c; any thread may. Once closed nothing happens."""

    def hold(
        self,
        *,
        identity: bytes,
        vocab_size: int,
        partition: tuple[int, int],
        bands: list[NDArray[Any]],
        num_cyclic: int = 0,
    ) -> bool:
        """Answer requests for this version from a `RowMemory` from now on; whether there was room for one more.

        Raises:
            ValueError: the bands are too short for the partition.
        """

    def withdraw(self, identity: bytes) -> None:
        """Begin no answer with rows of this version from now on; their memory is let go half a second later at most,
        or when the last answer that has begun is sent.
        """

    def counters(self) -> tuple[int, int, int]:
        """Requests, rows and bytes answered so far, of all versions together."""


@runtime_checkable
class Sharing(Protocol):
    """A responder some of whose right requests may be answered from memory without asking it."""

    @property
    def max_ids(self) -> int:
        """Most ids in one request."""

    def share(self, lanes: Lanes) -> bool:
        """Let lanes hold what is in memory, now and as that changes, and count their answers as its own.

        False where nothing will ever be: the lanes are then not used.
        """


def lanes_for(responder: object) -> Any | None:
    """`Lanes` over a responder's rows; None where there is no helper or nothing is shared."""
    helper = compiled.load()
    if helper is None or not isinstance(responder, Sharing):
        return None
    lanes = helper.Lanes(responder.max_ids)
    if responder.share(lanes):
        return lanes
    lanes.close()
    return None
