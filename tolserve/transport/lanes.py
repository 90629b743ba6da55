"""Connections that the compiled helper serves, and how they come to it and leave it.

A connection begins with Python. Once Python has answered a request for its rows, the helper answers those that follow
as long as they are without fault; at the first that is not, Python has the connection back, with what was received, and
refuses or answers as it always does. So nothing is decided in two places: the helper knows the right request only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray

from tolserve.native import compiled


@dataclass(frozen=True, kw_only=True)
class RowMemory:
    """Rows of one partition in this process's memory.

    Attributes:
        bands: uint8 [rows, row_bytes] by band, contiguous; they stay where they are.
        num_cyclic: row(id) is the one at id modulo this; 0 is the partition's blocks one after another.
    """

    identity: bytes
    vocab_size: int
    max_ids: int
    partition: tuple[int, int]
    bands: list[NDArray[Any]]
    num_cyclic: int = 0


class Counts(Protocol):
    """Requests, rows and bytes answered so far."""

    def counters(self) -> tuple[int, int, int]:
        """Any thread may ask."""


@runtime_checkable
class HasRowMemory(Protocol):
    """A responder whose right requests may be answered from memory without asking it."""

    def row_memory(self) -> RowMemory | None:
        """Where its rows are; None where they have to be asked for."""

    def count_also(self, lanes: Counts) -> None:
        """These answers are its own as well."""


def lanes_for(responder: object) -> Any | None:
    """`Lanes` of tolserve/native/lanes.c over a responder's rows; None where there is no helper or no memory."""
    helper = compiled.load()
    memory = responder.row_memory() if isinstance(responder, HasRowMemory) and helper is not None else None
    if helper is None or memory is None:
        return None
    lanes = helper.Lanes(**vars(memory))
    assert isinstance(responder, HasRowMemory)
    responder.count_also(lanes)
    return lanes
