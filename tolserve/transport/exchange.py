"""The row protocol as messages of an Arrow Flight `do_exchange` stream.

The bytes of the protocol are those of `tolserve.transport.frames`. A client puts them into the app_metadata of its
messages, whose command is `COMMAND`, in parts of any size. A node answers with messages whose bytes are their
app_metadata, then the values of their only column, one after another. It sends its schema, `SCHEMA`, first and unasked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import flight

from tolserve.transport.errors import ProtocolError

COMMAND = b"tol rows 1"
SCHEMA = pa.schema([("rows", pa.binary_view())])
"""Values of a view array may lie anywhere: rows go out from where they are."""

MESSAGE_BYTES = 1 << 20
"""Rows in one message: little enough that a client takes one while the next is on its way."""
INLINE_BYTES = 64 << 10
"""Answers up to this size are cheaper copied into app_metadata than made a column."""
_MOST_INLINE = 12
"""A view array holds shorter values in itself."""
_VIEW = np.dtype([("length", "<i4"), ("prefix", "S4"), ("buffer", "<i4"), ("offset", "<i4")])

FAULTS = (pa.ArrowException, OSError)
"""What pyarrow raises where a stream is over; some of its errors are Python's own."""


def column(buffers: Sequence[memoryview | bytes]) -> pa.Array:
    """One value for each buffer, without a copy; each is longer than 12 bytes."""
    assert all(len(buffer) > _MOST_INLINE for buffer in buffers)
    views = np.zeros(len(buffers), _VIEW)
    views["length"] = [len(buffer) for buffer in buffers]
    views["prefix"] = [bytes(buffer[:4]) for buffer in buffers]
    views["buffer"] = np.arange(len(buffers))
    parts = [None, pa.py_buffer(views), *map(pa.py_buffer, buffers)]
    return pa.Array.from_buffers(SCHEMA.field(0).type, len(buffers), parts)


def write_piece(writer: Any, head: bytes, buffers: Sequence[memoryview | bytes]) -> None:
    """Send the bytes of `head` and `buffers`. The buffers must stay as they are for as long as they are referred to.

    Raises:
        FAULTS: the stream is over.
    """
    if not buffers:
        writer.write_metadata(pa.py_buffer(head))
        return
    first = 0
    while first < len(buffers):
        last, size = first, 0
        while last < len(buffers) and (size == 0 or size + len(buffers[last]) <= MESSAGE_BYTES):
            size += len(buffers[last])
            last += 1
        batch = pa.RecordBatch.from_arrays([column(buffers[first:last])], schema=SCHEMA)
        if first == 0 and head:
            writer.write_with_metadata(batch, pa.py_buffer(head))
        else:
            writer.write_batch(batch)
        first = last


def bytes_of(chunk: Any) -> list[memoryview]:
    """The protocol's bytes in a message that a node sent, where they lie.

    Raises:
        ProtocolError: it is not of this kind.
    """
    parts = [] if chunk.app_metadata is None else [chunk.app_metadata]
    if chunk.data is not None and chunk.data.num_rows:
        if chunk.data.schema != SCHEMA:
            raise ProtocolError(f"a message has the columns {chunk.data.schema}; expected {SCHEMA}")
        _, _, *values = chunk.data.column(0).buffers()
        parts += values
    return [memoryview(part).cast("B") for part in parts if part.size]


def descriptor() -> Any:
    """What a client opens the stream with."""
    return flight.FlightDescriptor.for_command(COMMAND)


def location(host: str, port: int, *, tls: bool) -> str:
    """The URI of a node."""
    return f"grpc+{'tls' if tls else 'tcp'}://{f'[{host}]' if ':' in host else host}:{port}"


def told(error: BaseException) -> str:
    """What a Flight error says, without what gRPC adds for its own developers."""
    text = str(error).strip().partition(" gRPC client debug context:")[0].partition(". Detail: ")[0]
    return text.rpartition("with message: ")[2].rstrip(".") or repr(error)
