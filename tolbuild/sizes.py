"""Bytes of a table before it is built, by what they are spent on."""

from __future__ import annotations

import math

from tolbuild.build_config import BLOCK_ROWS, CODE_BYTES, Codes
from tolbuild.compress.allocate import Costs
from tolbuild.table.coding import LARGEST_CODE, SCALE_BYTES
from tolbuild.table.parquet import FRAME_BYTES, MAX_PAGE_BYTES, ParquetLayout

METADATA_BYTES = 1024
"""At most, of one array: its zarr.json."""


def table_costs(
    *,
    vocab_size: int,
    width: int,
    num_layers: int,
    num_kept: int,
    num_bands: int,
    shard_rows: int,
    codes: Codes,
    full_rank: bool,
    row_scales: bool,
    layout: str,
    may_be_whole: bool,
) -> Costs:
    """Costs of a table as it is stored: codes, what stands around them in their files, scales by token in every layer
    that may have them, bases, means, spectra, scales, row checksums and metadata; receipts, manifests and partial
    results apart.

    The whole is at least what `Manifest.total_bytes` will be, and more by less than 1 KiB an array and 256 B a Parquet
    file, apart from the layers whose tokens have no scales after all.

    Args:
        num_layers: of the model; num_kept: of the table.
        full_rank: whether all layers keep their rows as they are, so that there are no bases, means or spectra.
        may_be_whole: whether a layer can; its integer codes then have scales of their own.
    """
    parquet, num_shards = layout == ParquetLayout.format, -(-vocab_size // shard_rows)
    stored_rows = vocab_size if parquet else -(-vocab_size // BLOCK_ROWS) * BLOCK_ROWS
    around = num_shards * (FRAME_BYTES if parquet else 16 * (shard_rows // BLOCK_ROWS) + 4)
    by_layer = num_layers * width
    side_bytes = num_bands * (4 * vocab_size + around)
    num_arrays = 2 if parquet else num_bands + 2
    if codes in LARGEST_CODE and may_be_whole:
        side_bytes, num_arrays = side_bytes + 4 * by_layer, num_arrays + 1
    if row_scales:
        side_bytes += num_kept * SCALE_BYTES * stored_rows
    if not full_rank:
        side_bytes, num_arrays = side_bytes + (4 + 8) * by_layer, num_arrays + 2 + num_kept
    return Costs(
        fixed=side_bytes + num_arrays * METADATA_BYTES,
        component=math.ceil(stored_rows * CODE_BYTES[codes]) + 4 * width,
        whole_layer=stored_rows * layer_bytes(width, codes, row_scales=False),
    )


def layer_bytes(rank: int, codes: Codes, row_scales: bool) -> int:
    """Bytes of one layer in the row of a token, with the token's scale where it may have one."""
    return math.ceil(rank * CODE_BYTES[codes]) + (SCALE_BYTES if row_scales else 0)


def check_pages(row_bytes: int, shard_rows: int, vocab_size: int) -> None:
    """Make sure that a shard fits into a Parquet page.

    Raises:
        ValueError: it does not; the message says what would.
    """
    fitting = MAX_PAGE_BYTES // row_bytes // BLOCK_ROWS * BLOCK_ROWS
    if min(shard_rows, vocab_size) > fitting:
        raise ValueError(
            f"--shard-rows {shard_rows} of {row_bytes:,} bytes do not fit into a Parquet page of "
            f"{MAX_PAGE_BYTES:,} bytes, at most {fitting} do"
        )
