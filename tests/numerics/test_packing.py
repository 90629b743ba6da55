"""Packed rows: what torch puts in, NumPy's reader and torch take out, for every type, rank and mix of scaled layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tolbuild.compress.packing import item_type, pack_layer, unpack_layer
from tolbuild.table.coding import CODE_TYPES, LARGEST_CODE, RowCoding

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@st.composite
def codings(draw: st.DrawFn) -> RowCoding:
    dtype = draw(st.sampled_from(CODE_TYPES))
    ranks = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=4)))
    scaled = tuple(draw(st.booleans()) and dtype in LARGEST_CODE for _ in ranks)
    return RowCoding(dtype=dtype, ranks=ranks, token_scaled=scaled)


def draw_layer(coding: RowCoding, place: int, count: int, device: str) -> tuple[Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(place)
    shape = (count, coding.ranks[place])
    if coding.dtype in LARGEST_CODE:
        largest = LARGEST_CODE[coding.dtype]
        codes_NC = torch.randint(-largest, largest + 1, shape, generator=generator, dtype=torch.int8)
    else:
        codes_NC = torch.randn(shape, generator=generator).to(item_type(coding))
    scaled = coding.scale_at(place) is not None
    token_N1 = torch.rand((count, 1), generator=generator).add(0.01).half().float() if scaled else None
    return codes_NC.to(device), None if token_N1 is None else token_N1.to(device)


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=100, deadline=None)
@given(coding=codings(), count=st.integers(1, 5))
def test_every_layer_comes_back_as_it_was_put(coding: RowCoding, count: int, device: str) -> None:
    rows_NI = torch.zeros((count, coding.num_items), dtype=item_type(coding), device=device)
    assert rows_NI.nbytes == count * coding.row_bytes
    layers = [draw_layer(coding, place, count, device) for place in range(len(coding.ranks))]
    for place, (codes_NC, token_N1) in enumerate(layers):
        pack_layer(rows_NI, coding, place, codes_NC, token_N1)
    stored = rows_NI.cpu().view(torch.uint8).numpy().view(coding.item)
    for place, (codes_NC, token_N1) in enumerate(layers):
        expected = codes_NC.float() if token_N1 is None else codes_NC.float() * token_N1
        assert torch.equal(unpack_layer(rows_NI, coding, place, torch.float32), expected)
        assert torch.equal(unpack_layer(rows_NI, coding, place, torch.bfloat16), expected.bfloat16())
        assert np.array_equal(coding.values(stored, place).astype(np.float32), expected.cpu().numpy())


@given(coding=codings())
def test_every_byte_of_a_row_has_one_meaning(coding: RowCoding) -> None:
    if coding.packed:
        places = range(len(coding.ranks))
        slices = [where for place in places if (where := coding.scale_at(place))]
        slices += [coding.codes_at(place) for place in places]
        assert [byte for where in slices for byte in range(where.start, where.stop)] == list(range(coding.row_bytes))
    else:
        assert coding.row_bytes == sum(coding.ranks) * np.dtype(coding.item).itemsize


def test_the_first_code_of_4_bits_is_in_the_low_half() -> None:
    coding = RowCoding(dtype="int4", ranks=(3, 1), token_scaled=(False, True))
    rows_NI = torch.zeros((1, coding.row_bytes), dtype=torch.uint8)
    pack_layer(rows_NI, coding, 0, torch.tensor([[1, -2, 7]], dtype=torch.int8))
    pack_layer(rows_NI, coding, 1, torch.tensor([[-7]], dtype=torch.int8), torch.tensor([[1.5]]))
    assert rows_NI.tolist() == [[0x00, 0x3E, 0xE1, 0x07, 0x09]]


def test_what_no_row_can_be_is_refused() -> None:
    with pytest.raises(ValueError, match="'int3'; known are float32, bfloat16, float16, int8, int4"):
        RowCoding(dtype="int3", ranks=(1,), token_scaled=(False,))
    with pytest.raises(ValueError, match="float16 codes have no scale by token"):
        RowCoding(dtype="float16", ranks=(1,), token_scaled=(True,))
    with pytest.raises(ValueError, match="2 ranks and 1 marks"):
        RowCoding(dtype="int8", ranks=(1, 2), token_scaled=(True,))
