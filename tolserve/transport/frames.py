"""The row protocol, byte by byte. Version 1; all integers are little-endian and unsigned.

A client sends requests, a memory node answers each with one response on the same connection, in order. A client may
send further requests before an answer has come.

Request, 48 bytes and the ids:

    offset  bytes  field
         0      4  magic "ToLq"
         4      1  protocol version, 1
         5      1  kind: 1 hello, 2 rows
         6      2  zero
         8     16  table identity: first 16 bytes of the SHA-256 of the manifest's body
        24      8  request id, chosen by the client, repeated in the answer
        32      8  band mask: bit b asks for band b; zero in a hello
        40      4  n, number of ids; zero in a hello; at most the node's limit (it tells in its answer to a hello)
        44      4  zero
        48    4*n  token ids

Response, 24 bytes and the payload:

    offset  bytes  field
         0      4  magic "ToLr"
         4      1  protocol version, 1
         5      1  status, below
         6      2  zero
         8      8  request id; zero where the request could not be read
        16      8  length of the payload in bytes
        24      -  payload

Payload of status 0 to a rows request: for each band asked for, in ascending order, the n rows of the ids in the order
they were given, each of the band's row bytes; nothing between them. The client knows the length before it comes and
takes any other for an error. A node whose store fails in the middle of the rows closes the connection.

Payload of status 0 to a hello:

    offset  bytes  field
         0      4  partition index
         4      4  number of partitions
         8      8  vocabulary size
        16      4  most ids in one request
        20      4  number of bands
        24    4*b  row bytes of each band

Payload of another status: at most 1,024 bytes of UTF-8 that say what was wrong.

    status  meaning                                                     connection after it
         0  ok                                                          open
         1  the node holds another table version                        open
         2  an id beyond the vocabulary or of another partition         open
         3  no band, or a band that the table does not have             open
         4  more ids than the node's limit                              closed (the ids are not read)
         5  not this protocol, another version, or an unknown kind      closed
         6  the node failed before it sent rows                         open
         7  no token, or a wrong one (tolserve.transport.admission)      closed
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tolserve.transport.errors import ProtocolError

VERSION = 1
HELLO = 1
ROWS = 2
REQUEST_MAGIC = b"ToLq"
RESPONSE_MAGIC = b"ToLr"
REQUEST = struct.Struct("<4sBBH16sQQII")
RESPONSE = struct.Struct("<4sBBHQQ")
MAX_MESSAGE_BYTES = 1024
_HELLO = struct.Struct("<IIQII")

Ids32 = NDArray[np.uint32]


class Status(enum.IntEnum):
    """How a request was answered."""

    OK = 0
    WRONG_IDENTITY = 1
    BAD_IDS = 2
    BAD_BANDS = 3
    TOO_MANY_IDS = 4
    MALFORMED = 5
    FAILED = 6
    UNAUTHORISED = 7


CLOSING = frozenset({Status.TOO_MANY_IDS, Status.MALFORMED, Status.UNAUTHORISED})
"""After these nothing more is read of the stream."""


class RequestHeader(NamedTuple):
    """The fixed part of a request."""

    kind: int
    identity: bytes
    request_id: int
    band_mask: int
    num_ids: int


class ResponseHeader(NamedTuple):
    """The fixed part of a response; `length` bytes of payload follow."""

    status: int
    request_id: int
    length: int


@dataclass(frozen=True, kw_only=True)
class Hello:
    """What a node says of itself."""

    partition: int
    num_partitions: int
    vocab_size: int
    max_ids: int
    row_bytes: tuple[int, ...]

    def pack(self) -> bytes:
        """The payload that says it."""
        head = _HELLO.pack(self.partition, self.num_partitions, self.vocab_size, self.max_ids, len(self.row_bytes))
        return head + struct.pack(f"<{len(self.row_bytes)}I", *self.row_bytes)

    @classmethod
    def unpack(cls, payload: bytes) -> Hello:
        """From a payload.

        Raises:
            ProtocolError: its length contradicts itself.
        """
        if len(payload) < _HELLO.size:
            raise ProtocolError(f"a hello of {len(payload)} bytes; at least {_HELLO.size} are expected")
        partition, num_partitions, vocab_size, max_ids, num_bands = _HELLO.unpack_from(payload)
        if len(payload) != _HELLO.size + 4 * num_bands:
            raise ProtocolError(f"a hello of {len(payload)} bytes for {num_bands} bands")
        row_bytes = struct.unpack_from(f"<{num_bands}I", payload, _HELLO.size)
        return cls(
            partition=partition,
            num_partitions=num_partitions,
            vocab_size=vocab_size,
            max_ids=max_ids,
            row_bytes=row_bytes,
        )


def pack_hello(identity: bytes, request_id: int) -> bytes:
    """A hello request."""
    return REQUEST.pack(REQUEST_MAGIC, VERSION, HELLO, 0, identity, request_id, 0, 0, 0)


def pack_rows(identity: bytes, request_id: int, band_mask: int, ids: Ids32) -> bytes:
    """A rows request."""
    head = REQUEST.pack(REQUEST_MAGIC, VERSION, ROWS, 0, identity, request_id, band_mask, len(ids), 0)
    return head + ids.tobytes()


def unpack_request(data: bytes | bytearray | memoryview) -> RequestHeader:
    """The fixed part of a request from its first 48 bytes.

    Raises:
        ProtocolError: another magic, version or kind, or a field that must be zero is not.
    """
    magic, version, kind, zero, identity, request_id, band_mask, num_ids, zero_too = REQUEST.unpack_from(data)
    if magic != REQUEST_MAGIC:
        raise ProtocolError(f"a request starts with {bytes(magic)!r}; expected {REQUEST_MAGIC!r}")
    if version != VERSION:
        raise ProtocolError(f"protocol version {version}; this node speaks {VERSION}")
    if kind not in (HELLO, ROWS):
        raise ProtocolError(f"request kind {kind}; known are 1 (hello) and 2 (rows)")
    if zero or zero_too or (kind == HELLO and (num_ids or band_mask)):
        raise ProtocolError("a request has bits set where the protocol has zeros")
    return RequestHeader(kind, identity, request_id, band_mask, num_ids)


def pack_response(status: int, request_id: int, length: int) -> bytes:
    """The fixed part of a response."""
    return RESPONSE.pack(RESPONSE_MAGIC, VERSION, status, 0, request_id, length)


def unpack_response(data: bytes | bytearray | memoryview) -> ResponseHeader:
    """The fixed part of a response from its first 24 bytes.

    Raises:
        ProtocolError: another magic, version or status, or an error message that is too long.
    """
    magic, version, status, _, request_id, length = RESPONSE.unpack_from(data)
    if magic != RESPONSE_MAGIC or version != VERSION:
        raise ProtocolError(f"a response starts with {bytes(magic)!r} version {version}; expected version {VERSION}")
    if status > Status.UNAUTHORISED:
        raise ProtocolError(f"response status {status} is unknown")
    if status != Status.OK and length > MAX_MESSAGE_BYTES:
        raise ProtocolError(f"an error message of {length} bytes; at most {MAX_MESSAGE_BYTES} are allowed")
    return ResponseHeader(status, request_id, length)


@lru_cache(maxsize=256)
def bands_of(mask: int) -> tuple[int, ...]:
    """Numbers of the bits set, ascending."""
    return tuple(bit for bit in range(mask.bit_length()) if mask >> bit & 1)


@lru_cache(maxsize=256)
def mask_of(bands: tuple[int, ...]) -> int:
    """The mask whose bits are `bands`."""
    return sum(1 << band for band in bands)
