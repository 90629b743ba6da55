"""From rows to the codes that a table stores, and what the table's reader will make of them again.

Reduced rank: codes = (rows - mean) @ basis^T; full rank: codes = rows. Integers: round(codes / (s_token * scale)), one
scale a component, one s_token a token where that pays (else 1).
Read back: rows' = s_token * codes @ (scale * basis) + mean, or s_token * codes * scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from tolbuild.build_config import Codes
from tolbuild.compress.basis import LayerBasis, project
from tolbuild.compress.quantise import fit_token_scales, quantise
from tolbuild.table.coding import LARGEST_CODE

_FLOATS = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class LayerFit:
    """What was fitted to one layer before its codes: fp32, on the device of the rows.

    basis: None at full rank. scale_C: integers only, one value a column of codes. by_token: whether each token has a
    scale of its own beside it.
    """

    basis: LayerBasis | None = None
    scale_C: Tensor | None = None
    by_token: bool = False

    @cached_property
    def decoder_RD(self) -> Tensor | None:
        """The basis with the scales folded in, as the table stores it; None at full rank."""
        if self.basis is None:
            return None
        return self.basis.basis_RD if self.scale_C is None else self.basis.basis_RD * self.scale_C[:, None]

    @classmethod
    def from_tensors(cls, fitted: dict[str, Tensor], device: torch.device) -> LayerFit:
        """What tolbuild.worker.cells.fit_layer gave, on a device."""
        basis = None
        if "basis" in fitted:
            basis = LayerBasis(
                mean_D=fitted["mean"].to(device), basis_RD=fitted["basis"].to(device), energies_D=fitted["energies"]
            )
        scale_C = fitted["scale"].to(device) if "scale" in fitted else None
        return cls(basis=basis, scale_C=scale_C, by_token="by_token" in fitted and bool(fitted["by_token"]))


@dataclass(frozen=True, kw_only=True)
class Coded:
    """Codes of some rows: [N, C] in their type, int8 for 4 bits too. token_N1: fp32, s_token where the fit has it."""

    codes_NC: Tensor
    token_N1: Tensor | None = None


def components(rows_ND: Tensor, fit: LayerFit) -> Tensor:
    """What is stored before it is rounded: [N, C] in fp32; the rows themselves at full rank."""
    return rows_ND if fit.basis is None else project(rows_ND, fit.basis)


def encode(rows_ND: Tensor, fit: LayerFit, codes: Codes) -> Coded:
    """Codes of fp32 rows; values beyond the type's range saturate."""
    x_NC = components(rows_ND, fit)
    if codes in LARGEST_CODE:
        assert fit.scale_C is not None, "integer codes without scales"
        largest = LARGEST_CODE[codes]
        if not fit.by_token:
            return Coded(codes_NC=quantise(x_NC, fit.scale_C, largest))
        token_N1 = fit_token_scales(x_NC, fit.scale_C, largest)
        return Coded(codes_NC=quantise(x_NC / token_N1, fit.scale_C, largest), token_N1=token_N1)
    if codes == "fp32":
        return Coded(codes_NC=x_NC)
    limit = torch.finfo(_FLOATS[codes]).max
    return Coded(codes_NC=x_NC.clamp(-limit, limit).to(_FLOATS[codes]))


def decode(coded: Coded, fit: LayerFit) -> Tensor:
    """The rows [N, D] that a reader makes of codes."""
    x_NC, decoder_RD = coded.codes_NC.to(torch.float32), fit.decoder_RD
    if coded.token_N1 is not None:
        x_NC = x_NC * coded.token_N1
    if fit.basis is not None and decoder_RD is not None:
        return torch.addmm(fit.basis.mean_D, x_NC, decoder_RD)
    return x_NC if fit.scale_C is None else x_NC * fit.scale_C
