"""`python -m tolbuild.verify URL`: is a table what it says it is?

Reads every object under the URL, metadata and receipts included, and compares it with the checksums of the manifests.
With --checkpoint, rows of sampled tokens are computed again and compared with the errors that the table states.

Exit status: 0 if the table is sound; 1 if not, with each object at fault named.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tolbuild.table.check import Fault, Findings, check_table
from tolbuild.table.errors import ToLError
from tolbuild.table.manifest import Manifest
from tolbuild.table.receipts import in_parallel
from tolbuild.table.stats import least_norm, table_energies, typical_norm
from tolbuild.table.store import Store, open_store

if TYPE_CHECKING:
    from tolbuild.checkpoint import Checkpoint
    from tolbuild.table.reader import Table

ROUNDING = 1e-4
"""Error that a row may have from rounding alone, on another kind of machine than the one that built it: relative to the
stated error, and to the row or, where the layer has a basis, to its typical row, whose terms a small row is the sum of.
"""


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """What to verify.

    Raises:
        ValueError: a sample of less than one token.
    """

    url: str
    """Where the table is: a path, file://, s3://bucket/prefix or another URL."""
    checkpoint: str | None = None
    """Compute rows of this checkpoint again and compare. The table must have been built from it."""
    sample: int = 256
    """Tokens whose rows are computed again, spread over the vocabulary."""

    def __post_init__(self) -> None:
        if self.sample < 1:
            raise ValueError(f"--sample is {self.sample}; it must be at least 1")


def main(arguments: Sequence[str] | None = None) -> int:
    """Verify and print; 0 for a sound table, else 1."""
    from tolbuild.cli import parse

    try:
        config = parse(VerifyConfig, positional=True, module="tolbuild.verify", doc=__doc__, arguments=arguments)
        store = open_store(config.url)
        try:
            return _verify(store, config)
        finally:
            store.close()
    except (ValueError, ToLError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _verify(store: Store, config: VerifyConfig) -> int:
    found = check_table(store)
    count = f"{len(found.versions)} version{'s' if len(found.versions) != 1 else ''}"
    print(f"{store.url}: {found.num_objects:,} objects, {found.num_bytes:,} bytes, {count}")
    for note in found.notes:
        print(f"  note      {note}")
    if config.checkpoint is not None and found.sound:
        _compare(store, found, config.checkpoint, config.sample)
    for fault in found.faults:
        print(f"  FAULT     {fault.key}: {fault.reason}")
    if not found.sound:
        print(f"not sound: {len(found.faults)} objects at fault")
        return 1
    print("sound: every object is what its checksum says")
    return 0


def _compare(store: Store, found: Findings, checkpoint_url: str, sample: int) -> None:
    """Rows of the latest version against the checkpoint's, computed here."""
    from tolbuild.checkpoint import open_checkpoint
    from tolbuild.table.reader import Table

    manifest, checkpoint = found.versions[-1], open_checkpoint(checkpoint_url)
    if manifest.model_fingerprint != checkpoint.fingerprint:
        found.fault(
            manifest.key,
            f"built from the checkpoint {manifest.model_fingerprint[:16]}; {checkpoint_url} is "
            f"{checkpoint.fingerprint[:16]}",
        )
        return
    ids = sample_tokens(manifest.vocab_size, sample)
    with Table(store, manifest) as table:
        energies = table_energies(store, manifest)
        typical = {
            layer: typical_norm(energies.get(layer) if _has_basis(manifest, layer) else None, manifest.vocab_size)
            for layer in _layers(manifest)
        }
        errors = {layer: _layer_errors(table, checkpoint, layer, ids, typical[layer]) for layer in typical}
    print(f"  rows      {len(ids)} tokens of version {manifest.version} computed again from {checkpoint_url}")
    print("  layer   error    worst row   stated worst")
    for stats in manifest.layer_stats:
        error, measured = errors[stats.layer]
        worst = measured.relative_N.max()
        print(f"  {stats.layer:>5}   {error:.2e}   {worst:.2e}   {stats.max_relative_error:.2e}")
        found.faults += beyond_stated(manifest, stats.layer, ids, measured, stats.max_relative_error)


@dataclass(frozen=True, kw_only=True)
class RowErrors:
    """Of sampled rows [N]: |stored - computed| / max(|computed|, least norm), and how much of it rounding explains."""

    relative_N: NDArray[np.float64]
    rounding_N: NDArray[np.float64]


def beyond_stated(
    manifest: Manifest, layer: int, ids: NDArray[np.int64], measured: RowErrors, stated: float
) -> list[Fault]:
    """One fault for each shard that has a sampled row further from the computed one than the table states."""
    error_N = measured.relative_N
    band = manifest.band_of(layer)
    assert band is not None, f"layer {layer} is dropped"
    bad = np.flatnonzero(~(error_N <= stated * (1 + ROUNDING) + measured.rounding_N))
    shards, firsts = np.unique(ids[bad] // band.layout.shard_rows, return_index=True)
    return [
        Fault(
            key=band.layout.shard_key(int(shard)),
            reason=f"layer {layer} of token {ids[bad[first]]} is {error_N[bad[first]]:.2e} from the computed row "
            f"(relative); {stated:.2e} is stated",
        )
        for shard, first in zip(shards.tolist(), firsts.tolist(), strict=True)
    ]


def sample_tokens(vocab_size: int, count: int) -> NDArray[np.int64]:
    """Token ids spread over the vocabulary, the same for the same numbers, ascending; all if there are not more."""
    if count >= vocab_size:
        return np.arange(vocab_size, dtype=np.int64)
    edges = np.arange(count + 1, dtype=np.int64) * vocab_size // count
    return np.random.default_rng(vocab_size).integers(edges[:-1], edges[1:])


def _layers(manifest: Manifest) -> list[int]:
    return [layer for band in manifest.bands for layer in band.layers]


def _layer_errors(
    table: Table, checkpoint: Checkpoint, layer: int, ids: NDArray[np.int64], typical: float
) -> tuple[float, RowErrors]:
    """|stored - computed| / |computed| over all sampled rows, and of each of them."""
    import torch

    from tolbuild.rows import MAX_CHUNK_ROWS, compute_rows

    embedding_ND = torch.cat(in_parallel(lambda token: checkpoint.embedding_rows(token, token + 1), ids.tolist()))
    with torch.no_grad():
        exact_ND = compute_rows(embedding_ND, checkpoint.memory_ffn(layer), chunk=MAX_CHUNK_ROWS).double().numpy()
    apart_N = np.linalg.norm(table.rows(ids, [layer])[:, 0] - exact_ND, axis=1)
    size_N = np.linalg.norm(exact_ND, axis=1)
    total = float(np.linalg.norm(apart_N) / max(float(np.linalg.norm(size_N)), 1e-30))
    size_N = np.maximum(size_N, least_norm(typical))
    return total, RowErrors(relative_N=apart_N / size_N, rounding_N=ROUNDING * np.maximum(1, typical / size_N))


def _has_basis(manifest: Manifest, layer: int) -> bool:
    band = manifest.band_of(layer)
    return band is not None and band.basis_of(layer) is not None


if __name__ == "__main__":
    sys.exit(main())
