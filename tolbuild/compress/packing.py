"""Codes into the bytes of rows and back, as tensors on any device; tolbuild.table.coding says which byte is what."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tolbuild.table.coding import RowCoding

_ITEMS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.int8}


def item_type(coding: RowCoding) -> torch.dtype:
    """Type of a tensor of stored rows: of the codes, or bytes where they are packed."""
    return torch.uint8 if coding.packed else _ITEMS[coding.dtype]


def pack_layer(
    rows_NI: Tensor, coding: RowCoding, place: int, codes_NC: Tensor, token_N1: Tensor | None = None
) -> None:
    """Put one layer's codes into rows.

    Args:
        rows_NI: of `item_type`.
        place: of the layer within the band.
        codes_NC: of the codes' type, int8 for 4 bits too.
        token_N1: s_token, values of fp16; for a layer that has one.
    """
    scale_bytes = coding.scale_at(place)
    assert (scale_bytes is None) == (token_N1 is None)
    if not coding.packed:
        rows_NI[:, coding.columns(place)] = codes_NC
        return
    if scale_bytes is not None and token_N1 is not None:
        rows_NI[:, scale_bytes] = token_N1.to(torch.float16).contiguous().view(torch.uint8)
    if coding.dtype == "int4":
        even_NC = F.pad(codes_NC, (0, codes_NC.shape[1] % 2))
        codes_NC = (even_NC[:, 0::2] & 15) | (even_NC[:, 1::2] << 4)
    rows_NI[:, coding.codes_at(place)] = codes_NC.contiguous().view(torch.uint8)


def unpack_layer(rows_NI: Tensor, coding: RowCoding, place: int, dtype: torch.dtype) -> Tensor:
    """What one layer's codes stand for, before basis, component scales and mean: [N, R] in `dtype`.

    s_token is multiplied in, in fp32 whatever `dtype` is.
    """
    if not coding.packed:
        return rows_NI[:, coding.columns(place)].to(dtype)
    codes_NC = rows_NI[:, coding.codes_at(place)].view(torch.int8)
    if coding.dtype == "int4":
        halves_NC2 = torch.stack(((codes_NC << 4) >> 4, codes_NC >> 4), dim=-1)
        codes_NC = halves_NC2.flatten(1)[:, : coding.ranks[place]]
    scale_bytes = coding.scale_at(place)
    if scale_bytes is None:
        return codes_NC.to(dtype)
    token_N1 = rows_NI[:, scale_bytes].clone(memory_format=torch.contiguous_format).view(torch.float16)
    return (codes_NC.float() * token_N1.float()).to(dtype)
