"""What is known of each layer of a table: error and energy as measured in its build, and what its mean explains."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tolbuild.table.manifest import LayerStats, Manifest
from tolbuild.table.reader import read_array
from tolbuild.table.receipts import LayerTally, ShardReceipt
from tolbuild.table.store import Store

Spectrum = NDArray[np.float64]

_LEAST_SHARE = 1e-3
"""Of a layer's typical row norm: a row that is smaller counts as this large where its error is taken relative to it."""

_SMALLEST = 1e-30
"""In the place of the norm of a row of zeros, where the layer's codes are its rows."""


@dataclass(frozen=True, kw_only=True)
class LayerEnergy:
    """|row|^2 of one layer summed over all tokens, each with its weight (1 on average), in two parts.

    mean: what the layer's mean row explains alone. spectrum_D: the components of what is left, the largest first.
    """

    mean: float
    spectrum_D: Spectrum

    @property
    def total(self) -> float:
        """Both together."""
        return self.mean + float(self.spectrum_D.sum())

    @property
    def mean_share(self) -> float:
        """Share of the whole that the mean explains."""
        return self.mean / self.total if self.total else 0.0

    def kept(self, rank: int) -> float:
        """Share of the centred energy within the first components."""
        return energy_kept(self.spectrum_D, rank)

    def error(self, rank: int) -> float:
        """|left out| / |row|, both over all tokens, where a rank is kept and nothing is rounded."""
        return float(self.spectrum_D[rank:].sum() / self.total) ** 0.5 if self.total else 0.0


def typical_norm(energy: LayerEnergy | None, vocab_size: int) -> float:
    """Root mean square of a layer's row norms, from mean and spectrum; 0 where it has none (its codes are rows)."""
    return 0.0 if energy is None else (energy.total / vocab_size) ** 0.5


def least_norm(typical: float) -> float:
    """What the norm of a row counts at least where its error is taken relative to it: |error| / max(|row|, least).

    A basis leaves of a row of (nearly) zeros what it leaves of any, so its relative error would have no bound: there
    the least is a thousandth of the layer's typical norm. Where codes are rows, no row's error is larger than the row,
    and the least only keeps zeros from dividing.

    Args:
        typical: of `typical_norm`.
    """
    return max(_LEAST_SHARE * typical, _SMALLEST)


def layer_energy(mean_D: NDArray[np.float32], spectrum_D: Spectrum, vocab_size: int) -> LayerEnergy:
    """The energies of a layer from its mean row and the eigenvalues of its centred Gram matrix."""
    mean = vocab_size * float(np.square(mean_D.astype(np.float64)).sum())
    return LayerEnergy(mean=mean, spectrum_D=np.maximum(spectrum_D, 0.0))


def table_energies(store: Store, manifest: Manifest) -> dict[int, LayerEnergy]:
    """Energies of a table's layers by number; none where all rows are stored as they are, without pass 1.

    Raises:
        TableCorruptError: means or spectra are missing or damaged.
    """
    if not {"means", "spectra"} <= {array.name for array in manifest.arrays}:
        return {}
    means_LD, spectra_LD = (read_array(store, manifest.array(name)) for name in ("means", "spectra"))
    layers = [stats.layer for stats in manifest.layer_stats]
    return {layer: layer_energy(means_LD[layer], spectra_LD[layer], manifest.vocab_size) for layer in layers}


def layer_stats(
    ranks: Iterable[tuple[int, int]],
    spectra: Mapping[int, Spectrum],
    receipts: Mapping[tuple[int, int], ShardReceipt],
) -> list[LayerStats]:
    """What the receipts of all shards say of each layer.

    Args:
        ranks: layers and their ranks. spectra: by layer; absent where nothing was fitted.
    """
    tallies: dict[int, list[LayerTally]] = {}
    for place in sorted(receipts):
        for tally in receipts[place].layers:
            tallies.setdefault(tally.layer, []).append(tally)
    return [_one_layer(layer, rank, tallies.get(layer, []), spectra.get(layer)) for layer, rank in ranks]


def _one_layer(layer: int, rank: int, own: list[LayerTally], spectrum_D: Spectrum | None) -> LayerStats:
    error, energy = sum(t.squared_error for t in own), sum(t.squared_rows for t in own)
    weighted_error, weighted_rows = sum(t.weighted_error or 0.0 for t in own), sum(t.weighted_rows or 0.0 for t in own)
    return LayerStats(
        layer=layer,
        rank=rank,
        relative_error=(error / energy) ** 0.5 if energy else 0.0,
        max_relative_error=max((t.max_relative_error for t in own), default=0.0),
        energy=float(energy),
        energy_kept=1.0 if spectrum_D is None else energy_kept(spectrum_D, rank),
        weighted_error=(weighted_error / weighted_rows) ** 0.5 if weighted_rows else None,
    )


def energy_kept(spectrum_D: Spectrum, rank: int) -> float:
    """Share of a spectrum's sum within its first values; 1 for a spectrum of zeros."""
    positive_D = np.maximum(spectrum_D, 0)
    total = float(positive_D.sum())
    return float(positive_D[:rank].sum()) / total if total else 1.0
