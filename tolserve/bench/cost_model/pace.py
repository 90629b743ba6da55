"""Shapes of models, and what a layer of one takes on a device: the larger of its bytes and its arithmetic."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tolserve.bench.cost_model.hardware import Accelerator

_BF16 = 2


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """A MemoryLLM's shape: attention only on the device, and rows as they are stored.

    kv_width: columns of keys (and of values). rank: columns of a layer's codes, 0 for whole rows. code_bytes: of each.

    Raises:
        ValueError: a size below 1 (rank: below 0 or above the width).
    """

    name: str
    vocab_size: int
    width: int
    num_layers: int
    kv_width: int
    hidden: int
    rank: int = 0
    code_bytes: float = 2.0
    layers_per_band: int = 4

    def __post_init__(self) -> None:
        for field in ("vocab_size", "width", "num_layers", "kv_width", "hidden", "layers_per_band"):
            if getattr(self, field) < 1:
                raise ValueError(f"shape {self.name}: {field} is {getattr(self, field)}")
        if not 0 <= self.rank <= self.width:
            raise ValueError(f"shape {self.name}: rank is {self.rank}; it must be in [0, {self.width}]")

    @property
    def row_bytes(self) -> float:
        """Of all layers of one token, as stored."""
        return (self.rank or self.width) * self.code_bytes * self.num_layers

    @property
    def table_bytes(self) -> float:
        """Of the whole vocabulary; bases are on the device."""
        return self.row_bytes * self.vocab_size

    @property
    def attention_bytes(self) -> float:
        """Weights of a layer in bf16: projections of q, k, v and o, and the basis of reduced rows."""
        return _BF16 * self.width * (2 * self.width + 2 * self.kv_width + self.rank)

    @property
    def band_layers(self) -> tuple[int, ...]:
        """Layers by band."""
        step = self.layers_per_band
        return tuple(min(step, self.num_layers - first) for first in range(0, self.num_layers, step))


SHAPES = {
    one.name: one
    for one in (
        ModelShape(name="1b", vocab_size=128_256, width=2048, num_layers=24, kv_width=2048, hidden=5464),
        ModelShape(name="8b", vocab_size=128_256, width=4096, num_layers=32, kv_width=1024, hidden=14_336),
        ModelShape(name="70b", vocab_size=128_256, width=8192, num_layers=80, kv_width=1024, hidden=28_672),
    )
}
"""The paper's 1B, and the widths and depths of well-known models of 8 and 70 billion parameters."""


def compressed(shape: ModelShape) -> ModelShape:
    """The shape with rows at a quarter of its width in int8: an eighth of fp16."""
    return replace(shape, name=f"{shape.name} rank {shape.width // 4} int8", rank=shape.width // 4, code_bytes=1.0)


def layer_s(shape: ModelShape, device: Accelerator, *, batch: int, context: int) -> float:
    """Seconds of a layer's attention and the addition of its rows, for one token of each of `batch` sequences.

    Args:
        context: tokens that each sequence attends to.
    """
    row = (shape.rank or shape.width) * shape.code_bytes
    moved = shape.attention_bytes + batch * (context * 2 * shape.kv_width * _BF16 + row)
    flops = 2 * batch * (shape.attention_bytes / _BF16 + 2 * context * shape.width)
    return device.layer_s + max(
        moved / (device.memory_bytes_per_s * device.bandwidth_share), flops / (device.flops * device.flops_share)
    )


def dense_layer_s(shape: ModelShape, device: Accelerator, *, batch: int, context: int) -> float:
    """The same with the feed-forward network computed: what a model without a table takes."""
    weights = 3 * shape.width * shape.hidden
    moved = _BF16 * weights + shape.attention_bytes + batch * context * 2 * shape.kv_width * _BF16
    flops = 2 * batch * (weights + shape.attention_bytes / _BF16 + 2 * context * shape.width)
    return device.layer_s + max(
        moved / (device.memory_bytes_per_s * device.bandwidth_share), flops / (device.flops * device.flops_share)
    )
