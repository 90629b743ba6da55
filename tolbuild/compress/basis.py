"""Principal components of a layer's rows, from their sum and Gram matrix.

Both add up over shards of the vocabulary, so the rows never have to be in one place. In fp64 the Gram matrix gives
components at 1e-3 of the largest to about 1e-10 of their size, which fp32 sums would give to 5e-4 only.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

_GRAM_ROWS = 512
"""Rows converted to fp64 at a time: few enough to stay in cache, enough to keep the product busy."""

_GRAM_COLUMNS = 128
"""Width of a block of columns: what lies left of its diagonal block is not computed, which saves almost half."""


@dataclass(frozen=True, kw_only=True)
class LayerBasis:
    """rows ~ codes @ basis + mean, for one layer.

    mean_D: fp32. basis_RD: fp32, orthonormal rows, largest energy first; the largest entry of each is positive.
    energies_D: fp64, all D eigenvalues of the centred Gram matrix, descending: squared singular values of rows - mean.
    offset_R: fp32, what projecting the mean gives, so that projecting need not subtract it from every row.
    """

    mean_D: Tensor
    basis_RD: Tensor
    energies_D: Tensor
    offset_R: Tensor = field(init=False)

    def __post_init__(self) -> None:
        offset_R = (self.basis_RD.double() * self.mean_D.double()).sum(dim=1).float()
        object.__setattr__(self, "offset_R", offset_R)

    @property
    def rank(self) -> int:
        """Components kept."""
        return len(self.basis_RD)

    def to(self, device: torch.device | str) -> LayerBasis:
        """The same on another device."""
        return LayerBasis(
            mean_D=self.mean_D.to(device), basis_RD=self.basis_RD.to(device), energies_D=self.energies_D.to(device)
        )


def gram_update(gram_DD: Tensor, sum_D: Tensor, rows_ND: Tensor, weights_N: Tensor | None = None) -> None:
    """Add rows^T @ diag(weights) @ rows to the upper triangle of `gram` and weights @ rows to `sum`, in place.

    Args:
        gram_DD: fp64. Only its upper triangle means anything afterwards.
        sum_D: fp64.
        rows_ND: fp32, any number of rows. How rows are cut into calls decides the last bits of the sums.
        weights_N: fp64, at least 0; None counts every row once.
    """
    block = gram_DD.shape[0] if gram_DD.is_cuda else _GRAM_COLUMNS
    size = max(1, len(rows_ND)) if gram_DD.is_cuda else _GRAM_ROWS
    for start in range(0, len(rows_ND), size):
        x_ND = rows_ND[start : start + size].double()
        root_N1 = None if weights_N is None else weights_N[start : start + size, None].sqrt()
        if root_N1 is not None:
            x_ND *= root_N1
        x_DN = x_ND.t()
        for left in range(0, len(gram_DD), block):
            gram_DD[left : left + block, left:].addmm_(x_DN[left : left + block], x_ND[:, left:])
        sum_D += (x_ND if root_N1 is None else x_ND.mul_(root_N1)).sum(dim=0)


def fit_basis(gram_DD: Tensor, sum_D: Tensor, num_rows: int, rank: int) -> LayerBasis:
    """Mean, leading components and energies of `num_rows` rows, or of rows whose weights sum to that.

    Args:
        gram_DD: fp64, rows^T @ rows; only the upper triangle is read.
        sum_D: fp64, the sum of the rows.
        rank: components to keep, at most D.

    Raises:
        ValueError: sums that are not finite.
    """
    if not bool(torch.isfinite(sum_D).all()) or not bool(torch.isfinite(gram_DD.triu()).all()):
        raise ValueError(f"sums over {num_rows} rows are not finite: the checkpoint's rows overflow fp32")
    assert 1 <= rank <= len(gram_DD) and num_rows >= 1
    centred_DD = torch.addr(gram_DD, sum_D, sum_D, alpha=-1.0 / num_rows)
    energies_D, vectors_DD = torch.linalg.eigh(centred_DD, UPLO="U")
    basis_RD = vectors_DD[:, -rank:].flip(1).t()
    peak_R1 = basis_RD.gather(1, basis_RD.abs().argmax(dim=1, keepdim=True))
    return LayerBasis(
        mean_D=(sum_D / num_rows).float(),
        basis_RD=torch.where(peak_R1 < 0, -basis_RD, basis_RD).float().contiguous(),
        energies_D=energies_D.flip(0).clamp_(min=0.0),
    )


def project(rows_ND: Tensor, basis: LayerBasis) -> Tensor:
    """Codes (rows - mean) @ basis^T, fp32 [N, R]."""
    return torch.addmm(basis.offset_R, rows_ND, basis.basis_RD.t(), beta=-1)
