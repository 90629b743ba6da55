"""`bench gpu`: the real engine at the 1B shape, random weights, bf16: base against memory with rows in three places.

Rows lie on the device (every band pinned), in this host's memory, or in another process behind TCP. Reported: ms a
decode step at each batch size, its ratio to base by round, and device GB. Without a GPU the same code runs at a small
shape in fp32, as a rehearsal: its figures mean nothing, and `rehearsal` says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from tolbuild.config import ModelConfig
from tolserve.bench.peers import remote_rows
from tolserve.bench.random_rows import random_store
from tolserve.bench.random_weights import RandomWeights
from tolserve.bench.report import alternate, estimate
from tolserve.engine.build import make_engine
from tolserve.engine.config import EngineConfig
from tolserve.engine.engine import Engine
from tolserve.engine.local_rows import LocalRows
from tolserve.engine.request import SamplingParams
from tolserve.memory.source import RowSource
from tolserve.memory.spec import RowSpec

SEED = 0
"""Of rows and weights."""
PROMPT_LENGTH = 128
LAYERS_PER_BAND = 4


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Shape and regime of one run; `base` is the dense model of the same size."""

    base: ModelConfig
    engine: EngineConfig
    batches: tuple[int, ...]
    num_steps: int
    rounds: int
    limit_s: float

    @property
    def memory(self) -> ModelConfig:
        """The memory model of the same shape."""
        derived = {"kind": "memory", "context_intermediate_size": 0, "memory_intermediate_size": 0}
        return ModelConfig.from_dict(self.base.to_dict() | derived)

    @property
    def rows(self) -> RowSpec:
        """Full rows of the memory model in the type that it computes with."""
        return RowSpec.uniform(
            num_layers=self.base.num_hidden_layers,
            layers_per_band=LAYERS_PER_BAND,
            rank=self.base.hidden_size,
            dtype=self.engine.dtype,
            vocab_size=self.base.vocab_size,
        )


def setting(*, quick: bool) -> Setting:
    """The paper's 1B shape where there is a GPU, a toy one elsewhere."""
    if not torch.cuda.is_available():
        base = ModelConfig(
            kind="base",
            vocab_size=512,
            hidden_size=64,
            num_hidden_layers=8,
            num_attention_heads=4,
            intermediate_size=160,
        )
        config = EngineConfig(num_blocks=256, max_model_len=512, prefix_cache=False)
        return Setting(base=base, engine=config, batches=(1, 4), num_steps=8, rounds=3, limit_s=10)
    base = ModelConfig(
        kind="base",
        vocab_size=128_256,
        hidden_size=2048,
        num_hidden_layers=24,
        num_attention_heads=32,
        intermediate_size=5464,
    )
    config = EngineConfig(num_blocks=1024, max_model_len=512, dtype="bfloat16", device="cuda", prefix_cache=False)
    if quick:
        return Setting(base=base, engine=config, batches=(8,), num_steps=32, rounds=3, limit_s=4)
    return Setting(base=base, engine=config, batches=(1, 8, 64), num_steps=128, rounds=30, limit_s=60)


def run(*, quick: bool) -> dict[str, Any]:
    """Figures of every contestant at every batch size."""
    chosen = setting(quick=quick)
    spec = chosen.rows
    store = random_store(spec)
    host = LocalRows(spec, [rows[: spec.vocab_size] for rows in store.bands])
    results: dict[str, Any] = {}
    with remote_rows(spec, num_staging=4 * chosen.engine.max_num_batched_tokens) as remote:
        pinned = replace(chosen.engine, pinned_bands=len(spec.bands))
        for batch in chosen.batches:
            contestants: dict[str, tuple[ModelConfig, EngineConfig, RowSource | None]] = {
                "base": (chosen.base, chosen.engine, None),
                "memory, rows on the device": (chosen.memory, pinned, host),
                "memory, rows in host memory": (chosen.memory, chosen.engine, host),
                "memory, rows over TCP": (chosen.memory, chosen.engine, remote),
            }
            results[f"b{batch}"] = _measure(contestants, chosen, batch)
            print(f"b{batch}: {results[f'b{batch}']}", flush=True)
    return {"gpu": results, "rehearsal": not torch.cuda.is_available()}


def _measure(
    contestants: dict[str, tuple[ModelConfig, EngineConfig, RowSource | None]], chosen: Setting, batch: int
) -> dict[str, Any]:
    measured: dict[str, Callable[[], float]] = {}
    device_gb: dict[str, float | None] = {}
    engines: list[Engine] = []
    for name, (shape, config, source) in contestants.items():
        before = _allocated()
        weights = RandomWeights(shape, dtype=config.torch_dtype, device=config.device)
        engine = make_engine(weights, replace(config, max_num_seqs=batch), source=source)
        device_gb[name] = round((_allocated() - before) / 1e9, 3) if config.device == "cuda" else None
        engines.append(engine)
        measured[name] = partial(step_ms, engine, batch, chosen.num_steps)
        step_ms(engine, batch, 4)
    figures = alternate(measured, rounds=chosen.rounds, limit_s=chosen.limit_s)
    for engine in engines:
        engine.close()
    return {
        name: {
            "step_ms": estimate(values).to_dict(),
            "of_base": estimate([own / dense for own, dense in zip(values, figures["base"], strict=True)]).to_dict(),
            "device_gb": device_gb[name],
        }
        for name, values in figures.items()
    }


def _allocated() -> int:
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0


def step_ms(engine: Engine, batch: int, num_steps: int) -> float:
    """Mean milliseconds of one decode step of `batch` sequences (one token of each), prompts apart."""
    vocab_size = engine.model.config.vocab_size
    chunked = -(-batch * PROMPT_LENGTH // engine.config.max_num_batched_tokens)
    params = SamplingParams(max_tokens=num_steps + chunked + 1, temperature=0.0, ignore_eos=True)
    names = [str(index) for index in range(batch)]
    for index, name in enumerate(names):
        prompt = [(index * 7919 + place * 104_729) % vocab_size for place in range(PROMPT_LENGTH)]
        engine.add_request(name, prompt, params)
    started: set[str] = set()
    while len(started) < batch:
        started |= {output.request_id for output in engine.step()}
    began = time.perf_counter()
    for _ in range(num_steps):
        engine.step()
    elapsed_s = time.perf_counter() - began
    for name in names:
        engine.cancel(name)
    return elapsed_s * 1e3 / num_steps
