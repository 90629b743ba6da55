"""`bench gpu`: the real engine at the 1B shape, random weights, bf16: base against memory with rows in three places.

Rows lie on the device (every band pinned), in this host's memory, or in another process behind TCP. Reported: ms a
token step at each batch size and device GB. Without a GPU the same code runs at a small shape in fp32, as a rehearsal:
its figures mean nothing and `rehearsal` says so.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from tolserve.bench.row_process import random_rows, row_process
from torch import Tensor

from tolbuild.config import ModelConfig
from tolserve.bench.report import alternate, estimate
from tolserve.engine.build import make_engine
from tolserve.engine.config import EngineConfig
from tolserve.engine.engine import Engine
from tolserve.engine.request import SamplingParams
from tolserve.engine.rows import Source

PROMPT_LENGTH = 128


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Shape and regime of one run."""

    shape: ModelConfig
    engine: EngineConfig
    batches: tuple[int, ...]
    num_steps: int
    rounds: int
    limit_s: float


def setting(*, quick: bool) -> Setting:
    """The paper's 1B shape where there is a GPU, a toy one elsewhere."""
    if torch.cuda.is_available():
        shape = ModelConfig(
            kind="base",
            vocab_size=128_256,
            hidden_size=2048,
            num_hidden_layers=24,
            num_attention_heads=32,
            intermediate_size=5464,
        )
        config = EngineConfig(num_blocks=1024, max_model_len=1024, dtype="bfloat16", device="cuda")
        batches, num_steps = ((1, 8), 32) if quick else ((1, 8, 64), 128)
        return Setting(
            shape=shape,
            engine=config,
            batches=batches,
            num_steps=num_steps,
            rounds=2 if quick else 5,
            limit_s=5 if quick else 60,
        )
    shape = ModelConfig(
        kind="base",
        vocab_size=512,
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=160,
    )
    return Setting(
        shape=shape,
        engine=EngineConfig(num_blocks=256, max_model_len=256, max_num_seqs=8),
        batches=(1, 4),
        num_steps=8,
        rounds=2,
        limit_s=5,
    )


class RandomWeights:
    """A checkpoint of random weights of any shape, drawn where they are used."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: str) -> None:
        self.config = config
        self._dtype = dtype
        self._device = device

    def tensor(self, name: str) -> Tensor:
        """N(0, initializer_range), ones for norms."""
        shape = self._shape(name)
        if len(shape) == 1:
            return torch.ones(shape, dtype=self._dtype, device=self._device)
        weight = torch.empty(shape, dtype=self._dtype, device=self._device)
        return weight.normal_(std=self.config.initializer_range)

    def _shape(self, name: str) -> tuple[int, ...]:
        config = self.config
        width, head_dim = config.hidden_size, config.head_dim
        part = name.split(".")[-2]
        shapes: dict[str, tuple[int, ...]] = {
            "embed_tokens": (config.vocab_size, width),
            "q_proj": (config.num_attention_heads * head_dim, width),
            "k_proj": (config.num_key_value_heads * head_dim, width),
            "v_proj": (config.num_key_value_heads * head_dim, width),
            "o_proj": (width, config.num_attention_heads * head_dim),
            "gate_proj": (config.context_intermediate_size, width),
            "up_proj": (config.context_intermediate_size, width),
            "down_proj": (width, config.context_intermediate_size),
        }
        return shapes.get(part, (width,))


def run(*, quick: bool) -> dict[str, Any]:
    """Figures of every contestant at every batch size; contestants are built one after the other within a round."""
    chosen = setting(quick=quick)
    memory = ModelConfig.from_dict(
        chosen.shape.to_dict() | {"kind": "memory", "context_intermediate_size": 0, "memory_intermediate_size": 0}
    )
    rows = random_rows(memory, chosen.engine.torch_dtype)
    results: dict[str, Any] = {}
    with row_process(memory, chosen.engine.torch_dtype) as remote:
        engines: dict[str, tuple[ModelConfig, EngineConfig, Source | None]] = {
            "base": (chosen.shape, chosen.engine, None),
            "memory, rows on the device": (memory, _pinned(chosen.engine, rows), rows),
            "memory, rows in host memory": (memory, chosen.engine, rows),
            "memory, rows over TCP": (memory, chosen.engine, remote),
        }
        for batch in chosen.batches:
            results[f"b{batch}"] = _measure(engines, chosen, batch)
            print(f"b{batch}: {results[f'b{batch}']}", flush=True)
    return {"gpu": results, "rehearsal": not torch.cuda.is_available()}


def _pinned(config: EngineConfig, rows: Source) -> EngineConfig:
    return replace(config, pinned_bands=len(rows.spec.bands))


def _measure(
    engines: dict[str, tuple[ModelConfig, EngineConfig, Source | None]], chosen: Setting, batch: int
) -> dict[str, Any]:
    base = chosen.engine
    built: dict[str, Engine] = {}
    memory_gb: dict[str, float] = {}
    for name, (shape, config, source) in engines.items():
        with _device_gb(config.device) as grown:
            weights = RandomWeights(shape, config.torch_dtype, config.device)
            built[name] = make_engine(weights, replace(config, max_num_seqs=max(batch, 1)), source=source)
        memory_gb[name] = grown[0]
        step_ms(built[name], batch, 4)
    figures = alternate(
        {name: lambda engine=engine: step_ms(engine, batch, chosen.num_steps) for name, engine in built.items()},
        rounds=chosen.rounds,
        limit_s=chosen.limit_s,
    )
    for engine in built.values():
        engine.close()
    ratios = {
        name: estimate([own / dense for own, dense in zip(values, figures["base"], strict=True)]).to_dict()
        for name, values in figures.items()
    }
    return {
        name: {
            "ms_per_token": estimate(values).to_dict(),
            "of_base": ratios[name],
            "device_gb": round(memory_gb[name], 3) if base.device == "cuda" else None,
        }
        for name, values in figures.items()
    }


@contextmanager
def _device_gb(device: str) -> Iterator[list[float]]:
    """What the device's memory in use grows by inside, GB; 0 on a CPU."""
    grown = [0.0]
    before = torch.cuda.memory_allocated() if device == "cuda" else 0
    yield grown
    if device == "cuda":
        torch.cuda.synchronize()
        grown[0] = (torch.cuda.memory_allocated() - before) / 1e9


def step_ms(engine: Engine, batch: int, num_steps: int) -> float:
    """Milliseconds of one decode step (one token of each of `batch` sequences), prompts apart."""
    vocab_size = engine.model.config.vocab_size
    for index in range(batch):
        prompt = [(index * 7919 + place * 104_729) % vocab_size for place in range(PROMPT_LENGTH)]
        params = SamplingParams(max_tokens=num_steps + 1, temperature=0.0, ignore_eos=True)
        engine.add_request(str(index), prompt, params)
    while engine.stats()["num_waiting"] or any(not s for s in [engine.step()]):
        engine.step()
    began = time.perf_counter()
    done = 0
    while engine.has_work():
        done += bool(engine.step())
    return (time.perf_counter() - began) * 1e3 / max(done, 1)
