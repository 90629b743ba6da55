"""Durable receipts of finished cells: what a resumed build reads, and where row checksums wait for the commit.

A receipt says nothing of when, where or by whom: equal cells leave equal bytes.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from tolbuild.table import crc32c, documents
from tolbuild.table.arrays import ObjectSum
from tolbuild.table.errors import FormatError, ObjectNotFoundError, TableCorruptError
from tolbuild.table.plain import OPTIONAL, from_plain, to_plain
from tolbuild.table.store import Store

RECEIPT_FORMAT = "tol-receipt/1"

_PARALLEL = 16
"""Small objects asked for at a time."""

A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True, kw_only=True)
class LayerTally:
    """How far the codes of a shard are from the exact rows of one layer.

    squared_error, squared_rows: sums over all values. max_relative_error: |stored - exact| / |exact| of the worst row,
    where a norm counts what tolbuild.table.stats.least_norm says at least.
    weighted_error, weighted_rows: the squared sums with each token's weight, where tokens have any.
    """

    layer: int
    squared_error: float
    squared_rows: float
    max_relative_error: float
    weighted_error: float | None = field(default=None, metadata=OPTIONAL)
    weighted_rows: float | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True, kw_only=True)
class ShardReceipt:
    """One finished shard of one band. row_sums: CRC-32C of each of its tokens' rows, base64 of little-endian uint32."""

    plan_hash: str
    band: int
    shard: int
    codes: ObjectSum
    row_sums: str
    layers: tuple[LayerTally, ...]

    @property
    def key(self) -> str:
        """Where the receipt is."""
        return f"{receipts_prefix(self.plan_hash)}/band-{self.band:03d}/{self.shard:05d}.json"

    @property
    def row_crc32c(self) -> NDArray[np.uint32]:
        """The row checksums, uint32 [tokens of the shard]."""
        return np.frombuffer(base64.b64decode(self.row_sums), "<u4").astype(np.uint32)

    def to_bytes(self) -> bytes:
        """The document."""
        return documents.encode({"format": RECEIPT_FORMAT, **to_plain(self)})

    def object_sum(self) -> ObjectSum:
        """Of the document itself, as a manifest names it."""
        data = self.to_bytes()
        return ObjectSum(key=self.key, size=len(data), crc32c=crc32c.value(data))

    @classmethod
    def from_bytes(cls, data: bytes, key: str) -> ShardReceipt:
        """The receipt of a document.

        Raises:
            TableCorruptError: not what was written, or not at its own key.
            FormatError: another format.
        """
        body = documents.decode(data, key)
        found = body.pop("format", None)
        if found != RECEIPT_FORMAT:
            raise FormatError(f"{key} has the format {found!r}; this reader knows {RECEIPT_FORMAT!r}")
        receipt = from_plain(cls, body, key)
        try:
            base64.b64decode(receipt.row_sums, validate=True)
        except binascii.Error as error:
            raise FormatError(f"{key}: row_sums is no base64: {error}") from error
        if receipt.key != key:
            raise TableCorruptError(f"{key} holds the receipt of {receipt.key}", [key])
        return receipt


def encode_row_sums(sums: NDArray[np.uint32]) -> str:
    """Row checksums as a receipt holds them."""
    return base64.b64encode(sums.astype("<u4").tobytes()).decode()


def receipts_prefix(plan_hash: str) -> str:
    """Folder of a plan's receipts."""
    return f"receipts/{plan_hash}"


def arrays_prefix(plan_hash: str) -> str:
    """Folder of a plan's arrays."""
    return f"arrays/{plan_hash}"


def finished_shards(store: Store, plan_hash: str) -> dict[tuple[int, int], ShardReceipt]:
    """Valid receipts by (band, shard) of shards whose object is there with the size that the receipt says.

    A damaged receipt, or one without its object, counts as not written.

    Raises:
        StoreError: the store cannot be reached.
    """
    sizes = {info.key: info.size for info in store.list(arrays_prefix(plan_hash))}
    keys = [info.key for info in store.list(receipts_prefix(plan_hash))]
    found = in_parallel(lambda key: _valid_receipt(store, key), keys)
    return {(r.band, r.shard): r for r in found if r is not None and sizes.get(r.codes.key) == r.codes.size}


def _valid_receipt(store: Store, key: str) -> ShardReceipt | None:
    try:
        return ShardReceipt.from_bytes(store.read(key), key)
    except (TableCorruptError, FormatError, ObjectNotFoundError):
        return None


def in_parallel(function: Callable[[A], B], items: Iterable[A]) -> list[B]:
    """Results in order, several at a time: small objects of a remote store cost a round trip each."""
    with ThreadPoolExecutor(_PARALLEL, thread_name_prefix="table") as pool:
        return list(pool.map(function, items))
