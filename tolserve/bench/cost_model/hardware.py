"""Descriptions of hardware: devices that compute, links that carry rows, stores that hold them. SI units."""

from __future__ import annotations

from dataclasses import dataclass, fields


class _Positive:
    """All numbers of a description are positive, but for those that may be zero.

    Raises:
        ValueError: one that is not, by name.
    """

    _may_be_zero: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, int | float) and (value < 0 or (value == 0 and field.name not in self._may_be_zero)):
                raise ValueError(f"{type(self).__name__} {getattr(self, 'name', '')}: {field.name} is {value}")


@dataclass(frozen=True, kw_only=True)
class Accelerator(_Positive):
    """What computes: peak FLOP/s of bf16, bytes/s and bytes of its memory, dollars an hour; shares that code reaches.

    layer_s: what a layer takes beside its arithmetic and bytes (launches, synchronisation).
    """

    name: str
    flops: float
    memory_bytes_per_s: float
    memory_bytes: float
    dollars_per_hour: float
    source: str
    flops_share: float = 0.6
    bandwidth_share: float = 0.85
    layer_s: float = 3e-6


@dataclass(frozen=True, kw_only=True)
class Link(_Positive):
    """What carries rows: bytes/s that arrive, seconds of a round trip, of work a message on both ends, and the tail.

    tail: 99th percentile of a fetch over its median. messages_per_s: of one memory node.
    """

    _may_be_zero = frozenset({"dollars_per_hour"})

    name: str
    bytes_per_s: float
    round_trip_s: float
    message_s: float
    tail: float
    messages_per_s: float
    source: str
    dollars_per_hour: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Store(_Positive):
    """What holds rows: seconds of a read at the median and the 99th percentile, bytes/s, reads/s, dollars a GB-hour."""

    _may_be_zero = frozenset({"p50_s", "p99_s", "dollars_per_gb_hour", "dollars_per_million_reads"})

    name: str
    p50_s: float
    p99_s: float
    bytes_per_s: float
    reads_per_s: float
    source: str
    dollars_per_gb_hour: float = 0.0
    dollars_per_million_reads: float = 0.0
