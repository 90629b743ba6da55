"""The three computations of a build, one for each kind of cell: sums, fits and codes. No store is touched here."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tolbuild.compress.basis import LayerBasis, fit_basis, gram_update
from tolbuild.compress.packing import item_type, pack_layer
from tolbuild.compress.quantise import choose_scales, fit_scales
from tolbuild.grid import ShardCell, SumCell
from tolbuild.plan import Plan
from tolbuild.table.coding import LARGEST_CODE
from tolbuild.table.receipts import LayerTally
from tolbuild.table.spec import BandSpec
from tolbuild.table.stats import layer_energy, least_norm, typical_norm
from tolbuild.worker.encode import LayerFit, components, decode, encode
from tolbuild.worker.partials import pack_upper, unpack_upper
from tolbuild.worker.row_source import RowSource
from tolbuild.worker.spool import Spool


def sum_segment(source: RowSource, spool: Spool, cell: SumCell, buffer_ND: Tensor) -> tuple[dict[str, Tensor], int]:
    """Pass 1 of one layer and segment; the rows go to the spool on the way.

    Returns:
        fp64 `sum` [D] and `upper` (the Gram matrix's upper triangle), for integer codes also the fp32 `sample` rows of
        this segment; and the bytes spooled.
    """
    plan, segment = source.plan, source.plan.segments[cell.segment]
    gram_DD = torch.zeros((plan.hidden_size, plan.hidden_size), dtype=torch.float64, device=source.device)
    sum_D = torch.zeros(plan.hidden_size, dtype=torch.float64, device=source.device)
    samples, spooled = [], 0
    for piece, embedding_ND in source.embedding_chunks(segment):
        rows_ND = source.rows(cell.layer, piece.ids, embedding_ND, buffer_ND)
        gram_update(gram_DD, sum_D, rows_ND, source.weights(piece))
        spooled += spool.save(cell.layer, piece.start, rows_ND)
        if plan.quantised:
            samples.append(rows_ND[source.sample_within(piece)].cpu())
    sums = {"sum": sum_D.cpu(), "upper": pack_upper(gram_DD)}
    return sums | ({"sample": torch.cat(samples)} if samples else {}), spooled


def fit_layer(
    source: RowSource, layer: int, parts: Sequence[dict[str, Tensor]], buffer_ND: Tensor
) -> dict[str, Tensor]:
    """Basis and scales of one layer from its partial sums, in segment order (none at full rank).

    Returns:
        fp32 `mean` [D] and `basis` [R, D], fp64 `energies` [D] (eigenvalues of the centred Gram matrix, descending);
        for integer codes what `fit_codes` gives. Where the rank is not known yet R is D and scales come later.
    """
    plan = source.plan
    tensors: dict[str, Tensor] = {}
    basis: LayerBasis | None = None
    if parts:
        upper, sum_D = parts[0]["upper"].clone(), parts[0]["sum"].clone()
        for part in parts[1:]:
            upper += part["upper"]
            sum_D += part["sum"]
        gram_DD = unpack_upper(upper, plan.hidden_size)
        basis = fit_basis(gram_DD.to(source.device), sum_D.to(source.device), plan.vocab_size, plan.num_fitted(layer))
        tensors = {"mean": basis.mean_D, "basis": basis.basis_RD, "energies": basis.energies_D}
    if plan.quantised and not plan.scale_cells():
        sample_ND = torch.cat([part["sample"] for part in parts]) if parts else source.sample_rows(layer, buffer_ND)
        tensors |= fit_codes(plan, sample_ND.to(source.device), basis)
    return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}


def fit_codes(plan: Plan, sample_ND: Tensor, basis: LayerBasis | None) -> dict[str, Tensor]:
    """Scales of one layer's integer codes, from the rows of its sampled tokens.

    Returns:
        fp32 `scale`, one a column of codes; where tokens may have scales too, `by_token`, whether they have.
    """
    sample_NC, largest = components(sample_ND, LayerFit(basis=basis)), LARGEST_CODE[plan.codes]
    if not plan.row_scales:
        return {"scale": fit_scales(sample_NC, largest).cpu()}
    scales = choose_scales(sample_NC, largest)
    return {"scale": scales.scale_C.cpu(), "by_token": torch.tensor(scales.by_token)}


def shard_codes(
    plan: Plan,
    source: RowSource,
    spool: Spool,
    fit_of: Callable[[int], LayerFit],
    cell: ShardCell,
    band: BandSpec,
    embedding_ND: Callable[[], Tensor],
    buffer_ND: Tensor,
) -> tuple[NDArray[np.generic], list[LayerTally]]:
    """Pass 2 of one band and shard: rows as the table stores them, [N, items], and each layer's error.

    Args:
        plan: with the final ranks. band: the cell's.
        embedding_ND: gives the shard's embeddings; asked only for rows that the spool does not hold.
    """
    coding, span = band.coding, plan.shard_range(cell.shard)
    stored_NI = np.empty((len(span), coding.num_items), coding.item)
    target_NI = torch.from_numpy(stored_NI).view(item_type(coding))
    errors = []
    for place, layer in enumerate(band.layers):
        fit = fit_of(layer)
        tally = _Tally(_least_norm(plan, fit))
        for piece in span.steps(plan.chunk_rows):
            first, last = piece.start - span.start, piece.stop - span.start
            rows_ND = spool.load(layer, piece.start, buffer_ND[: len(piece)])
            if rows_ND is None:
                rows_ND = source.rows(layer, piece.ids, embedding_ND()[first:last], buffer_ND)
            coded = encode(rows_ND, fit, plan.codes)
            pack_layer(target_NI[first:last], coding, place, coded.codes_NC, coded.token_N1)
            tally.add(rows_ND, decode(coded, fit), source.weights(piece))
        errors.append(tally.of_layer(layer))
    return stored_NI, errors


def _least_norm(plan: Plan, fit: LayerFit) -> float:
    if fit.basis is None:
        return least_norm(typical_norm(None, plan.vocab_size))
    mean_D, energies_D = fit.basis.mean_D.cpu().numpy(), fit.basis.energies_D.cpu().numpy()
    return least_norm(typical_norm(layer_energy(mean_D, energies_D, plan.vocab_size), plan.vocab_size))


class _Tally:
    """Squared sums over chunks: fp32 within a row, fp64 over rows.

    Args:
        least: what a row's norm counts at least, see tolbuild.table.stats.least_norm.
    """

    def __init__(self, least: float) -> None:
        self._least = least
        self._error = self._power = self._worst = 0.0
        self._weighted: tuple[float, float] | None = None

    def add(self, rows_ND: Tensor, decoded_ND: Tensor, weights_N: Tensor | None) -> None:
        """Count a chunk; `decoded` (which may be `rows` itself) is overwritten."""
        power_N = torch.linalg.vector_norm(rows_ND, dim=1).double()
        error_N = torch.linalg.vector_norm(torch.sub(rows_ND, decoded_ND, out=decoded_ND), dim=1).double()
        self._error += float(error_N.square().sum())
        self._power += float(power_N.square().sum())
        if weights_N is not None:
            error, power = self._weighted or (0.0, 0.0)
            self._weighted = (
                error + float(weights_N @ error_N.square()),
                power + float(weights_N @ power_N.square()),
            )
        self._worst = max(self._worst, float((error_N / power_N.clamp(min=self._least)).max()))

    def of_layer(self, layer: int) -> LayerTally:
        """The sums so far."""
        weighted_error, weighted_rows = self._weighted or (None, None)
        return LayerTally(
            layer=layer,
            squared_error=self._error,
            squared_rows=self._power,
            max_relative_error=self._worst,
            weighted_error=weighted_error,
            weighted_rows=weighted_rows,
        )
