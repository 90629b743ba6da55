"""The engines that take turns at a point of a real model: over the point's rows, and over its three references."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch

from tolbuild.checkpoint import Checkpoint, open_checkpoint
from tolbuild.config import ModelConfig
from tolserve.bench.cost.material import FEW_LAYERS, Material, Materials
from tolserve.bench.cost.places import Asked
from tolserve.bench.cost.point import Point
from tolserve.bench.cost.sources import Counts, as_asked, cached_source, host_source
from tolserve.bench.cost.streams import CHECKPOINT, STREAMS
from tolserve.bench.random_weights import RandomWeights
from tolserve.engine.build import make_engine
from tolserve.engine.config import EngineConfig
from tolserve.engine.engine import Engine
from tolserve.engine.load import local_rows
from tolserve.engine.weights import TensorSource
from tolserve.memory.device_table import DeviceTable
from tolserve.memory.source import RowSource

FP16 = "full-float16"
_COMPUTED = "full-float32"
"""Codes of rows that are computed when they are needed."""
_MAX_LEN_1B = 4096
_BLOCK_SIZE = 32


def _shape_1b(kind: str) -> ModelConfig:
    return ModelConfig(
        kind=kind,  # type: ignore[arg-type]
        vocab_size=STREAMS["zipf-32k"].vocab_size,
        hidden_size=2048,
        num_hidden_layers=FEW_LAYERS,
        num_attention_heads=32,
        intermediate_size=5464,
        max_position_embeddings=_MAX_LEN_1B,
    )


class Models:
    """Weights and local rows of the real engines, loaded when first asked for and kept."""

    def __init__(self, materials: Materials) -> None:
        self._materials = materials
        self._kept: dict[Any, Any] = {}

    def weights(self, engine: str, kind: str) -> TensorSource:
        """Of the memory model, or of the dense model of its shape, whose weights are random."""
        return self._once(("weights", engine, kind), lambda: self._weights(engine, kind))  # type: ignore[no-any-return]

    def table(self, point: Point, codes: str) -> DeviceTable:
        """Every row of the point's model in `codes`, in this process's memory: the device's, for a CPU."""
        material = self._materials.get(point, codes=codes)
        asked = Asked(point=replace(point, place="host", codes=codes), material=material, fleet=None)  # type: ignore[arg-type]
        return self._once(("table", id(material)), lambda: DeviceTable.load(host_source(asked)))  # type: ignore[no-any-return]

    def computed(self) -> RowSource:
        """Every row of the shipped checkpoint as its networks compute it, fp32."""
        return self._once("computed", lambda: local_rows(open_checkpoint(CHECKPOINT)))  # type: ignore[no-any-return]

    def _weights(self, engine: str, kind: str) -> TensorSource:
        if engine == "1b":
            torch.manual_seed(0)
            return _Kept(RandomWeights(_shape_1b(kind), dtype=torch.float32, device="cpu"))
        checkpoint: Checkpoint = open_checkpoint(CHECKPOINT)
        if kind == "memory":
            return checkpoint
        derived = {"kind": "base", "context_intermediate_size": 0, "memory_intermediate_size": 0}
        return _Kept(
            RandomWeights(
                ModelConfig.from_dict(checkpoint.config.to_dict() | derived), dtype=torch.float32, device="cpu"
            )
        )

    def _once(self, key: Any, make: Any) -> Any:
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]


class _Kept:
    """The same tensors every time they are asked for."""

    def __init__(self, inner: TensorSource) -> None:
        self.config = inner.config
        self._inner = inner
        self._tensors: dict[str, torch.Tensor] = {}

    def tensor(self, name: str) -> torch.Tensor:
        if name not in self._tensors:
            self._tensors[name] = self._inner.tensor(name)
        return self._tensors[name]


@contextmanager
def contestants(
    asked: Asked, models: Models, materials: Materials, counts: Counts, *, max_tokens: int
) -> Iterator[dict[str, Engine]]:
    """Engines by name: "rows" over the point's place, and those of `figures.REFERENCES`.

    Those of the memory model share weights and KV cache: where a copy of the same weights happens to lie in memory is
    worth some percent of a step, more than what is compared here.
    """
    point = asked.point
    config = _config(point, models, max_tokens)
    memory = models.weights(point.engine, "memory")
    fp16 = materials.get(point, codes=FP16)
    local: RowSource
    local, own = (
        (models.computed(), None) if point.place == "computed" else (models.table(point, point.codes), asked.material)
    )
    with ExitStack() as stack:
        rows = local
        if point.place != "device":
            rows = as_asked(point.overlap, stack.enter_context(cached_source(asked, counts)))
        pinned = replace(config, pinned_bands=min(point.pinned_bands, len(asked.material.spec.bands)))
        codes_local = _engine(memory, config, local, own)
        engines = {
            "rows": _engine(
                memory, config if point.place in ("device", "computed") else pinned, rows, own, codes_local
            ),
            "codes_local": codes_local,
            "fp16_local": _engine(memory, config, models.table(point, FP16), fp16, codes_local),
            "dense": make_engine(models.weights(point.engine, "base"), config),
        }
        for engine in engines.values():
            stack.callback(engine.close)
        yield engines


def computed_material(models: Models) -> Material:
    """What the place "computed" gives: full fp32 rows that lie nowhere."""
    return Material(spec=models.computed().spec, node={}, make_store=_nowhere, make_url=_nowhere)


def _nowhere() -> Any:
    raise AssertionError("computed rows are in no store")


def _engine(
    weights: TensorSource,
    config: EngineConfig,
    source: RowSource,
    material: Material | None,
    base: Engine | None = None,
) -> Engine:
    expansions = None if material is None else material.expansions
    return make_engine(weights, config, source=source, expansions=expansions, base=base)


def _config(point: Point, models: Models, max_tokens: int) -> EngineConfig:
    longest = models.weights(point.engine, "memory").config.max_position_embeddings
    length = point.prompt + max_tokens
    if length > longest:
        raise ValueError(f"{point.name}: {point.prompt} + {max_tokens} tokens; the model has {longest} positions")
    num_seqs = num_requests(point)
    return EngineConfig(
        block_size=_BLOCK_SIZE,
        num_blocks=num_seqs * (-(-length // _BLOCK_SIZE) + 1),
        max_num_seqs=num_seqs,
        max_model_len=length,
        prefix_cache=False,
    )


def num_requests(point: Point) -> int:
    """Requests of a round: the batch at once, or twice as many as they arrive."""
    return point.batch * (2 if point.arrivals_per_s else 1)
