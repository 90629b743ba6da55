"""Tiny random models and row sources for the engine's tests."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tolbuild.config import ModelConfig
from tolbuild.model import MemoryLLM
from tolserve.engine.build import make_engine
from tolserve.engine.config import EngineConfig
from tolserve.engine.engine import Engine
from tolserve.engine.local_rows import LocalRows
from tolserve.engine.request import RequestOutput, SamplingParams
from tolserve.memory.bill import MemoryBill
from tolserve.memory.spec import BandSpec, RowSpec

VOCAB_SIZE = 101
NUM_LAYERS = 5
WIDTH = 48
LAYERS_PER_BAND = 2


def tiny_model(kind: str, *, num_key_value_heads: int = 4) -> MemoryLLM:
    """A random model whose logits are spread enough to tell tokens apart."""
    config = ModelConfig(
        kind=kind,  # type: ignore[arg-type]
        vocab_size=VOCAB_SIZE,
        hidden_size=WIDTH,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=num_key_value_heads,
        intermediate_size=96,
        beta=2 if kind == "flex" else 0,
        max_position_embeddings=256,
    )
    model = MemoryLLM(config)
    model.reset_parameters(seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(6.0 if "embed" in name else 15.0)
            else:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


class ModelTensors:
    """A model in memory as a source of weights."""

    def __init__(self, model: MemoryLLM) -> None:
        self.config = model.config
        self._state = model.state_dict()

    def tensor(self, name: str) -> Tensor:
        return self._state[name]


@torch.no_grad()
def dense_rows(model: MemoryLLM) -> Tensor:
    """The memory term of every token and layer, fp32 [V, L, D]."""
    embedding = model.model.embed_tokens.weight
    return torch.stack([layer.rows(embedding) for layer in model.model.layers], dim=1)


def local_source(model: MemoryLLM) -> LocalRows:
    """All rows of `model` in this process."""
    rows_VLD = dense_rows(model)
    return LocalRows.computed(
        lambda layer: rows_VLD[:, layer],
        vocab_size=VOCAB_SIZE,
        num_layers=NUM_LAYERS,
        width=WIDTH,
        layers_per_band=LAYERS_PER_BAND,
    )


@dataclass(kw_only=True)
class StagedHandle:
    """One request of a `StagedRows`."""

    index: np.ndarray[Any, np.dtype[np.int64]]
    token_ids: np.ndarray[Any, np.dtype[np.int64]]
    bands: tuple[int, ...]
    bill: MemoryBill
    arrived: set[int] = field(default_factory=set)


class StagedRows:
    """A source as a networked one behaves: rows lie nowhere before `arrive`, and are gone after `release`.

    `codes` are typed arrays [V, columns] by band; `log` has what was asked for. While `fail` is set arrivals raise it.
    """

    def __init__(self, codes: list[np.ndarray[Any, Any]], layers_per_band: int, ranks: list[int]) -> None:
        bands = []
        for index, array in enumerate(codes):
            first = index * layers_per_band
            widths = ranks[first : first + layers_per_band]
            bands.append(
                BandSpec(
                    index=index,
                    layers=tuple(range(first, first + len(widths))),
                    ranks=tuple(widths),
                    dtype=str(array.dtype),
                    row_bytes=array.dtype.itemsize * sum(widths),
                )
            )
        self.spec = RowSpec(bands=tuple(bands), vocab_size=len(codes[0]), identity=bytes(16))
        self._codes = [np.ascontiguousarray(array).view(np.uint8) for array in codes]
        self._pools = [np.full((4096, array.shape[1]), 0xFF, np.uint8) for array in self._codes]
        self._free = list(np.random.default_rng(0).permutation(4096))
        self.log: list[list[int]] = []
        self.fail: Exception | None = None

    @property
    def num_held(self) -> int:
        """Pool rows that no release has given back."""
        return 4096 - len(self._free)

    def start(self, token_ids: Any, *, bands: tuple[int, ...] | None = None) -> StagedHandle:
        assert len(np.unique(token_ids)) == len(token_ids), "ids of one request must be distinct"
        self.log.append(token_ids.tolist())
        index = np.array([self._free.pop() for _ in token_ids], np.int64)
        bill = MemoryBill(rows_needed=len(token_ids), rows_unique=len(token_ids))
        bill.hits_by_tier["remote"] = len(token_ids)
        return StagedHandle(index=index, token_ids=token_ids, bands=self.spec.choose(bands), bill=bill)

    def arrive(self, handle: StagedHandle, band: int) -> None:
        assert band in handle.bands, f"band {band} was not asked for"
        if self.fail is not None:
            raise self.fail
        if band not in handle.arrived:
            handle.arrived.add(band)
            handle.bill.bytes_moved += len(handle.token_ids) * self.spec.bands[band].row_bytes
            self._pools[band][handle.index] = self._codes[band][handle.token_ids]

    def absent(self, token_ids: Any) -> Any:
        return token_ids

    def pool(self, band: int) -> Any:
        return self._pools[band]

    def wait(self, handle: StagedHandle, band: int) -> Any:
        self.arrive(handle, band)
        return self._pools[band][handle.index]

    def release(self, handle: StagedHandle) -> None:
        for pool in self._pools:
            pool[handle.index] = 0xFF
        self._free.extend(handle.index.tolist())

    def close(self) -> None:
        assert self.num_held == 0


def staged_source(model: MemoryLLM) -> StagedRows:
    """The rows of `model` as fp32, from a `StagedRows`."""
    rows = dense_rows(model).numpy()
    bands = [rows[:, i : i + LAYERS_PER_BAND].reshape(VOCAB_SIZE, -1) for i in range(0, NUM_LAYERS, LAYERS_PER_BAND)]
    return StagedRows(bands, LAYERS_PER_BAND, [WIDTH] * NUM_LAYERS)


def tiny_engine(model: MemoryLLM, *, source: Any = None, tokenizer: Any = None, **settings: Any) -> Engine:
    """An engine over `model` with small blocks; `settings` are those of `EngineConfig`."""
    defaults = {
        "block_size": 4,
        "num_blocks": 200,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 32,
        "max_model_len": 128,
    }
    expansions, checks = settings.pop("expansions", None), settings.pop("checks", None)
    if model.config.has_memory and source is None:
        source = local_source(model)
    config = EngineConfig(**(defaults | settings))
    return make_engine(
        ModelTensors(model), config, source=source, expansions=expansions, tokenizer=tokenizer, checks=checks
    )


def run_all(engine: Engine, requests: dict[str, tuple[list[int], SamplingParams]]) -> dict[str, list[RequestOutput]]:
    """Give all requests at once and step until all are done; the outputs of each."""
    for request_id, (prompt, params) in requests.items():
        engine.add_request(request_id, prompt, params)
    outputs: dict[str, list[RequestOutput]] = {request_id: [] for request_id in requests}
    while engine.has_work():
        for output in engine.step():
            outputs[output.request_id].append(output)
    return outputs


def token_ids(outputs: list[RequestOutput]) -> list[int]:
    """All tokens of a request."""
    return [token.token_id for output in outputs for token in output.tokens]


def mixed_requests(count: int = 12, *, seed: int = 0) -> dict[str, tuple[list[int], SamplingParams]]:
    """Prompts of 1 to 40 tokens, outputs of 1 to 30, greedy and seeded sampling in turn, all with log-probabilities."""
    draw = np.random.default_rng(seed)
    requests = {}
    for index in range(count):
        prompt = draw.integers(0, VOCAB_SIZE, draw.integers(1, 41)).tolist()
        params = SamplingParams(
            max_tokens=int(draw.integers(1, 31)),
            temperature=0.0 if index % 2 else 0.8,
            top_p=1.0 if index % 3 else 0.9,
            seed=index,
            logprobs=2,
            prompt_logprobs=1,
            ignore_eos=True,
        )
        requests[str(index)] = prompt, params
    return requests
