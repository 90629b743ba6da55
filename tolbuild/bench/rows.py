"""FFN rows against the best square product: `rows_gemm_fraction`."""

from __future__ import annotations

import torch

from tolbuild.bench.measure import Contestant, in_turn, say, show
from tolbuild.bench.products import best_rate, square_products
from tolbuild.rows import MAX_CHUNK_ROWS, MemoryFFN, ffn_rows


def measure(*, quick: bool, device: torch.device, seed: int) -> dict[str, float | None]:
    """One chunk of 2048 rows at d 2048, K 5464 on one kernel thread (bf16 on a GPU); `quick` takes d 1024, K 2736."""
    width, hidden = (1024, 2736) if quick else (2048, 5464)
    sizes = (1024, 2048) if quick else (1024, 2048, 4096)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    say(f"rows: {MAX_CHUNK_ROWS} rows, d {width}, K {hidden}, {dtype}, 1 thread a kernel")
    torch.manual_seed(seed)
    ffn = random_ffn(width, hidden).to(device, dtype)
    embedding_ND = torch.randn(MAX_CHUNK_ROWS, width, device=device)
    out_ND = torch.empty_like(embedding_ND)
    rows = Contestant(name="FFN rows", run=lambda: ffn_rows(embedding_ND, ffn, out=out_ND))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        timings = in_turn([rows, *square_products(dtype, device, sizes)], rounds=5, device=device)
    finally:
        torch.set_num_threads(threads)
    show(timings)
    rate = 6 * MAX_CHUNK_ROWS * width * hidden / timings["FFN rows"].median_s
    best = best_rate(timings, dtype, sizes)
    say(f"    rows {rate / 1e9:,.1f} GFLOP/s, best product {best / 1e9:,.1f}")
    return {"rows_gemm_fraction": rate / best}


def random_ffn(width: int, hidden: int) -> MemoryFFN:
    """A network of normally distributed weights, in fp32 on the CPU."""
    return MemoryFFN(
        norm_weight_D=torch.ones(width),
        norm_bias_D=torch.zeros(width),
        gate_up_2KD=torch.randn(2 * hidden, width) / width**0.5,
        down_DK=torch.randn(width, hidden) / hidden**0.5,
        eps=1e-5,
    )
