"""Bytes of a table before it is built, by what they are spent on."""

from __future__ import annotations

from tolbuild.build_config import BLOCK_ROWS, CODE_BYTES, Codes
from tolbuild.compress.allocate import Costs

_METADATA_BYTES = 1024
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
    may_be_whole: bool,
) -> Costs:
    """Costs of a table as it is stored: codes with the rest of the last block, shard indices, bases, means, spectra,
    scales, row checksums and metadata; receipts, manifests and partial results apart.

    The whole is at least what `Manifest.total_bytes` will be, and more by less than 1 KiB an array.

    Args:
        num_layers: of the model; num_kept: of the table.
        full_rank: whether all layers keep their rows as they are, so that there are no bases, means or spectra.
        may_be_whole: whether a layer can; its integer codes then have scales of their own.
    """
    code_bytes = CODE_BYTES[codes]
    stored_rows = -(-vocab_size // BLOCK_ROWS) * BLOCK_ROWS
    index_bytes = -(-vocab_size // shard_rows) * (16 * (shard_rows // BLOCK_ROWS) + 4)
    by_layer = num_layers * width
    side_bytes = num_bands * (4 * vocab_size + index_bytes)
    num_arrays = num_bands + 2
    if codes == "int8" and may_be_whole:
        side_bytes, num_arrays = side_bytes + 4 * by_layer, num_arrays + 1
    if not full_rank:
        side_bytes, num_arrays = side_bytes + (4 + 8) * by_layer, num_arrays + 2 + num_kept
    return Costs(
        fixed=side_bytes + num_arrays * _METADATA_BYTES,
        component=stored_rows * code_bytes + 4 * width,
        whole_layer=stored_rows * code_bytes * width,
    )
