"""The vocabulary x layer grid of a build: ranges of token ids, and the cells that a plan is made of.

Pass 1 (only where the rank is cut): a `SumCell` computes one layer's rows of one segment of the vocabulary and adds up
their sum and Gram matrix; a `FitCell` adds a layer's segments in order and solves for its basis and scales. Where ranks
follow from spectra, a `RanksCell` gives each layer its rank, and only then a `ScaleCell` fits a layer's scales. Pass 2:
a `ShardCell` turns one shard's rows of one band into codes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

MAX_SEGMENTS = 4
"""Partial sums a layer: few, so that `_build/` stays small, and fixed, so that additions happen in one order."""


@dataclass(frozen=True, order=True)
class RowRange:
    """Token ids from `start` up to but not including `stop`."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def ids(self) -> range:
        """Each of them."""
        return range(self.start, self.stop)

    def steps(self, size: int) -> Iterator[RowRange]:
        """The range cut at multiples of `size` from its start; the last piece may be shorter."""
        for start in range(self.start, self.stop, size):
            yield RowRange(start, min(start + size, self.stop))


@dataclass(frozen=True, order=True)
class SumCell:
    """Sum and Gram matrix of one layer's rows over one segment of the vocabulary."""

    layer: int
    segment: int

    @property
    def name(self) -> str:
        """Its name in messages and in the key of its partial sums."""
        return f"sum-{self.layer:03d}-{self.segment}"


@dataclass(frozen=True, order=True)
class FitCell:
    """Mean and basis of one layer, and scales where its rank is given."""

    layer: int

    @property
    def name(self) -> str:
        """Its name in messages and in the key of what it fitted."""
        return f"fit-{self.layer:03d}"


@dataclass(frozen=True, order=True)
class RanksCell:
    """The ranks of all layers from their spectra, where they are not given: what every shard waits for."""

    @property
    def name(self) -> str:
        """Its name in messages and in the key of the ranks."""
        return "ranks"


@dataclass(frozen=True, order=True)
class ScaleCell:
    """Scales of one layer's integer codes at the rank that the layer was given."""

    layer: int

    @property
    def name(self) -> str:
        """Its name in messages and in the key of its scales."""
        return f"scale-{self.layer:03d}"


@dataclass(frozen=True, order=True)
class ShardCell:
    """Codes of one band for the tokens of one shard: one object of the table and its receipt."""

    band: int
    shard: int

    @property
    def name(self) -> str:
        """Its name in messages."""
        return f"band-{self.band:03d}-shard-{self.shard:05d}"


PartialCell = SumCell | FitCell | RanksCell | ScaleCell
"""Cells whose results lie under `_build/` until the commit."""

Cell = PartialCell | ShardCell


def make_segments(vocab_size: int, shard_rows: int) -> tuple[RowRange, ...]:
    """The vocabulary as at most 4 runs of whole shards, as even as whole shards allow."""
    num_shards = -(-vocab_size // shard_rows)
    count = min(MAX_SEGMENTS, num_shards)
    edges = [num_shards * s // count * shard_rows for s in range(count + 1)]
    return tuple(RowRange(start, min(stop, vocab_size)) for start, stop in pairwise(edges))
