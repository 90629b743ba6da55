"""The engine's logits against the plain forward, in every way that a step can be put together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_models import (
    LAYERS_PER_BAND,
    NUM_LAYERS,
    VOCAB_SIZE,
    WIDTH,
    StagedRows,
    dense_rows,
    local_source,
    mixed_requests,
    run_all,
    staged_source,
    tiny_engine,
    tiny_model,
    token_ids,
)
from torch import Tensor

from tolbuild.build_config import BuildConfig
from tolbuild.checkpoint import save_checkpoint
from tolbuild.drive.driver import build_table
from tolbuild.model import MemoryLLM
from tolbuild.table import open_table
from tolserve.engine.expand import LayerExpansion, table_expansions
from tolserve.engine.local_rows import LocalRows
from tolserve.engine.request import RequestOutput, SamplingParams
from tolserve.memory.spec import RowSpec

TOLERANCE = 1e-4


def reference_logprobs(model: MemoryLLM, ids: list[int], rows_VLD: Tensor | None = None) -> Tensor:
    """log-probabilities [S, V] of the plain forward, with the rows of every token where given."""
    tokens = torch.tensor([ids])
    with torch.no_grad():
        logits = model(tokens) if rows_VLD is None else model(tokens, rows_VLD, tokens)
    return logits[0].log_softmax(-1)


def check_request(
    model: MemoryLLM, prompt: list[int], greedy: bool, outputs: list[RequestOutput], rows_VLD: Tensor | None = None
) -> None:
    """Every reported log-probability is the reference's; greedy tokens are its most likely ones."""
    reference = reference_logprobs(model, prompt + token_ids(outputs), rows_VLD)
    prompt_scores = outputs[0].prompt_logprobs
    assert prompt_scores is not None
    assert prompt_scores[0] is None
    assert len(prompt_scores) == len(prompt)
    reported = [*prompt_scores[1:], *(token for output in outputs for token in output.tokens)]
    for position, token in enumerate(reported):
        assert token is not None
        assert token.logprob == pytest.approx(float(reference[position, token.token_id]), abs=TOLERANCE)
        for other, logprob in token.top_logprobs:
            assert logprob == pytest.approx(float(reference[position, other]), abs=TOLERANCE)
    if greedy:
        for place, token in enumerate(reported[len(prompt) - 1 :]):
            best = float(reference[len(prompt) - 1 + place].max())
            assert token is not None
            assert float(reference[len(prompt) - 1 + place, token.token_id]) > best - 1e-3


def check_all(model: MemoryLLM, rows_VLD: Tensor | None = None, **settings: Any) -> dict[str, list[int]]:
    """Serve the mixed requests and compare each with the reference; their tokens."""
    requests = mixed_requests()
    engine = tiny_engine(model, **settings)
    outputs = run_all(engine, requests)
    for request_id, (prompt, params) in requests.items():
        check_request(model, prompt, params.temperature == 0.0, outputs[request_id], rows_VLD)
    assert engine.stats()["num_free_blocks"] == engine.config.num_blocks
    return {request_id: token_ids(found) for request_id, found in outputs.items()}


@pytest.mark.parametrize("kind", ["base", "memory", "flex"])
@pytest.mark.parametrize("num_key_value_heads", [4, 2])
def test_engine_agrees_with_plain_forward(kind: str, num_key_value_heads: int) -> None:
    check_all(tiny_model(kind, num_key_value_heads=num_key_value_heads))


@pytest.mark.parametrize("kind", ["base", "memory", "flex"])
def test_tokens_do_not_depend_on_batch_chunks_or_preemption(kind: str) -> None:
    model = tiny_model(kind)
    usual = check_all(model)
    assert check_all(model, max_num_batched_tokens=9, num_blocks=30) == usual
    assert check_all(model, max_num_seqs=1, block_size=16) == usual


@pytest.mark.parametrize("kind", ["memory", "flex"])
def test_rows_from_any_source_give_the_same_bits(kind: str) -> None:
    model = tiny_model(kind)
    requests = mixed_requests()
    local = run_all(tiny_engine(model, source=local_source(model)), requests)
    source = staged_source(model)
    engine = tiny_engine(model, source=source)
    staged = run_all(engine, requests)
    engine.close()
    source.close()
    for request_id in requests:
        assert [o.tokens for o in local[request_id]] == [o.tokens for o in staged[request_id]]
        assert local[request_id][0].prompt_logprobs == staged[request_id][0].prompt_logprobs


@pytest.mark.parametrize("kind", ["memory", "flex"])
@pytest.mark.parametrize("pinned_bands", [0, 1, 3])
def test_alpha_and_dropped_layers(kind: str, pinned_bands: int) -> None:
    model = tiny_model(kind)
    rows_VLD = 0.7 * dense_rows(model)
    rows_VLD[:, [0, 2, 3]] = 0.0
    source = staged_source(model)
    check_all(model, rows_VLD, source=source, alpha=0.7, drop_layers=(0, 2, 3), pinned_bands=pinned_bands)
    assert source.num_held == 0


def low_rank(rows_VLD: Tensor, ranks: list[int], dtype: str) -> tuple[StagedRows, tuple[LayerExpansion, ...], Tensor]:
    """Codes of `rows_VLD` by their principal components, the expansions, and the rows that they stand for."""
    codes, expansions, rebuilt = [], [], torch.zeros_like(rows_VLD)
    for layer, rank in enumerate(ranks):
        mean = rows_VLD[:, layer].mean(0)
        basis = torch.linalg.svd(rows_VLD[:, layer] - mean, full_matrices=False).Vh[:rank]
        code = (rows_VLD[:, layer] - mean) @ basis.T
        if dtype == "int8":
            scale = code.abs().amax(0) / 127
            code, basis = (code / scale).round(), basis * scale[:, None]
        codes.append(code.numpy().astype(dtype))
        rebuilt[:, layer] = torch.from_numpy(codes[-1].astype(np.float32)) @ basis + mean
        expansions.append(LayerExpansion(basis_RD=basis, mean_D=mean))
    bands = [np.concatenate(codes[i : i + LAYERS_PER_BAND], axis=1) for i in range(0, NUM_LAYERS, LAYERS_PER_BAND)]
    return StagedRows(bands, LAYERS_PER_BAND, ranks), tuple(expansions), rebuilt


@pytest.mark.parametrize("kind", ["memory", "flex"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_low_rank_codes_expand_to_their_rows(kind: str, dtype: str) -> None:
    model = tiny_model(kind)
    source, expansions, rows_VLD = low_rank(dense_rows(model), [12, 7, 48, 20, 1], dtype)
    check_all(model, 0.9 * rows_VLD, source=source, expansions=expansions, alpha=0.9, pinned_bands=1)


@pytest.mark.parametrize(
    ("kind", "codes", "pinned_bands"), [("memory", "int8", 0), ("flex", "fp16", 1), ("memory", "int4", 1)]
)
def test_a_built_table_with_whole_and_reduced_layers_in_one_band(
    kind: str, codes: str, pinned_bands: int, tmp_path: Path
) -> None:
    """Ranks by a budget, from the build to the engine's logits, rows that arrive or lie on the device."""
    model = tiny_model(kind)
    save_checkpoint(tmp_path / "c", model.config, model.state_dict())
    (tmp_path / "layers.json").write_text("[1e-9, 1, 1e-9, 1e-9, 1e-9]")
    size = {"int4": 28_300, "int8": 37_000, "fp16": 48_000}[codes]
    config = BuildConfig(
        checkpoint=str(tmp_path / "c"), table=str(tmp_path / "t"), rank=f"bytes:{size}", codes=codes,  # type: ignore[arg-type]
        layout="parquet" if codes == "int4" else "zarr",
        layer_weights=tmp_path / "layers.json", layers_per_band=LAYERS_PER_BAND, shard_rows=64, no_ray=True, workers=1,
    )  # fmt: skip
    build_table(config)
    with open_table(config.table) as table:
        spec = RowSpec.from_manifest(table.manifest)
        assert spec.bands[0].ranks[1] == WIDTH > spec.bands[0].ranks[0]
        ids = np.arange(VOCAB_SIZE)
        source = LocalRows(spec, [table.codes(ids, band.index).view(np.uint8) for band in spec.bands])
        expansions, rows_VLD = table_expansions(table, NUM_LAYERS), torch.from_numpy(table.rows(ids))
    check_all(model, 0.9 * rows_VLD, source=source, expansions=expansions, alpha=0.9, pinned_bands=pinned_bands)


def test_integer_codes_at_full_rank() -> None:
    model = tiny_model("memory")
    rows_VLD = dense_rows(model)
    scale_LD = rows_VLD.abs().amax(0) / 127
    codes = (rows_VLD / scale_LD).round()
    typed = codes.numpy().astype(np.int8)
    bands = [typed[:, i : i + LAYERS_PER_BAND].reshape(VOCAB_SIZE, -1) for i in range(0, NUM_LAYERS, LAYERS_PER_BAND)]
    source = StagedRows(bands, LAYERS_PER_BAND, [WIDTH] * NUM_LAYERS)
    expansions = tuple(LayerExpansion(scale_C=scale) for scale in scale_LD)
    check_all(model, codes * scale_LD, source=source, expansions=expansions)


def test_prompt_alone_is_scored_without_generating() -> None:
    model = tiny_model("memory")
    prompt = list(range(50))
    params = SamplingParams(max_tokens=0, prompt_logprobs=0)
    outputs = run_all(tiny_engine(model), {"a": (prompt, params)})["a"]
    assert [output.finish_reason for output in outputs] == ["length"]
    assert token_ids(outputs) == []
    check_request(model, prompt, False, outputs)
