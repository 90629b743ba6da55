"""From rows to the codes that a table stores, and what the table's reader will make of them again.

Reduced rank: codes = (rows - mean) @ basis^T; full rank: codes = rows. int8: round(codes / scale), scale a component.
Read back: rows' = codes @ (scale * basis) + mean, or codes * scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from tolbuild.build_config import Codes
from tolbuild.compress.basis import LayerBasis, project
from tolbuild.compress.quantise import quantise

_FP16_LARGEST = 65504.0


@dataclass(frozen=True, kw_only=True)
class LayerFit:
    """What was fitted to one layer before its codes: fp32, on the device of the rows.

    basis: None at full rank. scale_C: int8 only, one value a column of codes.
    """

    basis: LayerBasis | None = None
    scale_C: Tensor | None = None

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
        return cls(basis=basis, scale_C=fitted["scale"].to(device) if "scale" in fitted else None)


def components(rows_ND: Tensor, fit: LayerFit) -> Tensor:
    """What is stored before it is rounded: [N, C] in fp32; the rows themselves at full rank."""
    return rows_ND if fit.basis is None else project(rows_ND, fit.basis)


def encode(rows_ND: Tensor, fit: LayerFit, codes: Codes) -> Tensor:
    """Codes [N, C] of fp32 rows; values beyond the type's range saturate."""
    x_NC = components(rows_ND, fit)
    if codes == "int8":
        assert fit.scale_C is not None, "int8 codes without scales"
        return quantise(x_NC, fit.scale_C)
    if codes == "fp16":
        return x_NC.clamp(-_FP16_LARGEST, _FP16_LARGEST).to(torch.float16)
    return x_NC


def decode(codes_NC: Tensor, fit: LayerFit) -> Tensor:
    """The rows [N, D] that a reader makes of codes: codes @ (scale * basis) + mean, or codes * scale."""
    x_NC, decoder_RD = codes_NC.to(torch.float32), fit.decoder_RD
    if fit.basis is not None and decoder_RD is not None:
        return torch.addmm(fit.basis.mean_D, x_NC, decoder_RD)
    return x_NC if fit.scale_C is None else x_NC * fit.scale_C
