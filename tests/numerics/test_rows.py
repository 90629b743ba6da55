"""Rows against a plain fp64 reference, and their bits against every way of cutting the work."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tolbuild.rows import MemoryFFN, chunk_rows, compute_rows, ffn_rows

WIDTH, HIDDEN = 96, 250


def make_ffn(seed: int = 0, width: int = WIDTH, hidden: int = HIDDEN) -> MemoryFFN:
    draw = torch.Generator().manual_seed(seed)
    return MemoryFFN(
        norm_weight_D=1 + 0.1 * torch.randn(width, generator=draw),
        norm_bias_D=0.1 * torch.randn(width, generator=draw),
        gate_up_2KD=torch.randn(2 * hidden, width, generator=draw) / width**0.5,
        down_DK=torch.randn(width, hidden, generator=draw) / hidden**0.5,
        eps=1e-5,
    )


def make_embedding(count: int, seed: int = 1, width: int = WIDTH) -> Tensor:
    return 0.02 * torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def reference_rows(embedding_ND: Tensor, ffn: MemoryFFN) -> Tensor:
    """W_down((W_up z) * SiLU(W_gate z)), z = LN(E), term by term in fp64."""
    e_ND = embedding_ND.double()
    centred_ND = e_ND - e_ND.mean(dim=1, keepdim=True)
    variance_N1 = centred_ND.square().mean(dim=1, keepdim=True)
    z_ND = centred_ND / (variance_N1 + ffn.eps).sqrt() * ffn.norm_weight_D.double() + ffn.norm_bias_D.double()
    gate_KD, up_KD = ffn.gate_up_2KD.double().chunk(2)
    gate_NK, up_NK = z_ND @ gate_KD.t(), z_ND @ up_KD.t()
    return (up_NK * gate_NK / (1 + torch.exp(-gate_NK))) @ ffn.down_DK.double().t()


@pytest.mark.parametrize("count", [1, 63, 512, 513, 1100])
def test_rows_agree_with_fp64(count: int) -> None:
    ffn, embedding_ND = make_ffn(), make_embedding(count)
    expected_ND = reference_rows(embedding_ND, ffn)
    error = (ffn_rows(embedding_ND, ffn).double() - expected_ND).abs().max() / expected_ND.abs().max()
    assert error < 2e-6


def test_out_receives_the_rows() -> None:
    ffn, embedding_ND = make_ffn(), make_embedding(128)
    out_ND = torch.full((128, WIDTH), torch.nan)
    assert ffn_rows(embedding_ND, ffn, out=out_ND) is out_ND
    assert torch.equal(out_ND, ffn_rows(embedding_ND, ffn))


@settings(max_examples=25, deadline=None)
@given(num_rows=st.integers(1, 700), shard_blocks=st.integers(1, 6), seed=st.integers(0, 5))
def test_bits_do_not_depend_on_who_computes_which_shard(num_rows: int, shard_blocks: int, seed: int) -> None:
    ffn, embedding_ND = make_ffn(), make_embedding(num_rows, seed)
    shard = 64 * shard_blocks
    chunk = chunk_rows(shard)
    whole_ND = compute_rows(embedding_ND, ffn, chunk=chunk)
    by_shard = [compute_rows(embedding_ND[s : s + shard], ffn, chunk=chunk) for s in range(0, num_rows, shard)]
    assert torch.equal(whole_ND, torch.cat(by_shard))


def test_bits_do_not_depend_on_where_tensors_start_in_memory() -> None:
    ffn, embedding_ND = make_ffn(width=90, hidden=77), make_embedding(192, width=90)

    def shifted(tensor: Tensor) -> Tensor:
        room = torch.empty(tensor.numel() + 1)
        return room[1:].view(tensor.shape).copy_(tensor)

    moved = MemoryFFN(
        norm_weight_D=shifted(ffn.norm_weight_D),
        norm_bias_D=shifted(ffn.norm_bias_D),
        gate_up_2KD=shifted(ffn.gate_up_2KD),
        down_DK=shifted(ffn.down_DK),
        eps=ffn.eps,
    )
    assert torch.equal(ffn_rows(shifted(embedding_ND), moved), ffn_rows(embedding_ND, ffn))


@given(blocks=st.integers(1, 5000))
def test_chunks_are_whole_blocks_and_divide_the_shard(blocks: int) -> None:
    shard = 64 * blocks
    chunk = chunk_rows(shard)
    assert chunk % 64 == 0 and shard % chunk == 0 and chunk <= 2048
    assert not any(shard % larger == 0 for larger in range(chunk + 64, min(shard, 2048) + 1, 64))


@pytest.mark.parametrize("shard", [0, -64, 63, 100])
def test_a_shard_that_is_not_blocks_is_refused(shard: int) -> None:
    with pytest.raises(ValueError, match=f"shard_rows is {shard}"):
        chunk_rows(shard)


def test_shapes_that_do_not_fit_are_refused_by_name() -> None:
    ffn = make_ffn()
    with pytest.raises(ValueError, match="gate_up_2KD has shape"):
        MemoryFFN(
            norm_weight_D=ffn.norm_weight_D,
            norm_bias_D=ffn.norm_bias_D,
            gate_up_2KD=ffn.gate_up_2KD[:-2],
            down_DK=ffn.down_DK,
            eps=1e-5,
        )
    with pytest.raises(ValueError, match="width 95; the network has 96"):
        ffn_rows(make_embedding(4, width=95), ffn)
