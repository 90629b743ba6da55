"""One point of the matrix: where the rows are, how they get here, and what asks for them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

EngineName = Literal["paced", "tiny", "1b"]

ENGINES: dict[EngineName, str] = {
    "paced": "paced engine: the 1B shape (24 layers, d 2048) on a device that is a timeline",
    "tiny": "real engine on this machine's CPU, the shipped checkpoint (6 layers, d 192, V 16,384)",
    "1b": "real engine on this machine's CPU, the 1B shape with 4 of its 24 layers, random weights, V 32,000",
}
"""What each engine is, as the report labels it."""

_NAMES = {
    "place": "{}",
    "codes": "{}",
    "stream": "{}",
    "link": "link {}",
    "round_trip_ms": "+{:g} ms",
    "gbit_per_s": "{:g} Gbit/s emulated",
    "num_nodes": "{} nodes",
    "cache_share": "cache {:.0%}",
    "policy": "{}",
    "pinned_bands": "{} pinned",
    "batch": "batch {}",
    "prompt": "prompt {}",
    "pace_us": "{:g} us a layer",
    "arrivals_per_s": "{:g} requests/s",
}


@dataclass(frozen=True, kw_only=True)
class Point:
    """Settings of one measurement; the defaults are those of the base point.

    Attributes:
        factor: which factor it varies; "base" for the base points.
        place: where the rows are, a name of `places.PLACES`.
        codes: "RANK-TYPE" with rank "full" or of the 1B width 2,048; see `codes.parse`.
        stream: which tokens, a name of `streams.STREAMS`.
        link: "loopback", or a name of the links that the bench is given.
        round_trip_ms: added to every request by a delaying transport.
        gbit_per_s: bandwidth of the delaying transport; 0 leaves the link as it is.
        num_nodes: memory nodes, a partition each.
        cache_share: of the tokens whose rows are cached on the device.
        policy: of the cache, a name of `sources.POLICIES`.
        pinned_bands: first bands that are on the device for every token.
        overlap: whether the step goes on while its rows come.
        batch: sequences in a step.
        prompt: tokens of each prompt (real engines).
        pace_us: a layer's time (paced engine).
        arrivals_per_s: Poisson arrivals of requests (real engines); 0 gives `batch` requests at once.

    Raises:
        ValueError: a value outside its range.
    """

    factor: str
    engine: EngineName = "paced"
    place: str = "nodes"
    codes: str = "512-int8"
    stream: str = "text-128k"
    link: str = "loopback"
    round_trip_ms: float = 0.0
    gbit_per_s: float = 0.0
    num_nodes: int = 1
    cache_share: float = 0.1
    policy: str = "static"
    pinned_bands: int = 1
    overlap: bool = True
    batch: int = 8
    prompt: int = 32
    pace_us: float = 20.0
    arrivals_per_s: float = 0.0

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise ValueError(f"engine is {self.engine!r}; it must be one of {', '.join(ENGINES)}")
        if not 0 <= self.cache_share <= 1:
            raise ValueError(f"cache_share is {self.cache_share}; it must be in [0, 1]")
        for name in ("num_nodes", "batch", "prompt", "pace_us"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive")
        for name in ("round_trip_ms", "gbit_per_s", "pinned_bands", "arrivals_per_s"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must not be negative")

    @property
    def is_networked(self) -> bool:
        """Whether rows come from memory nodes over a connection of the bench's own."""
        return self.place == "nodes"

    @property
    def name(self) -> str:
        """The engine and what differs from its base point; no two points of a matrix have the same."""
        usual = base(self.engine)
        parts = [
            _NAMES[field].format(getattr(self, field))
            for field in _NAMES
            if getattr(self, field) != _value(usual, field)
        ]
        if not self.overlap:
            parts.append("no overlap")
        return f"{self.engine}: {', '.join(parts) or 'base'}"

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Point:
        """From `to_dict`."""
        return cls(**{field.name: values[field.name] for field in fields(cls)})


def base(engine: EngineName) -> Point:
    """The point that the others of an engine are varied around.

    Each has rank-512 int8 rows on one memory node over loopback, a tenth of the tokens cached, the first band pinned
    and 8 sequences; the 1B shape, which a CPU takes long to compute, has one.
    """
    paced = Point(factor="base")
    if engine == "tiny":
        return replace(paced, engine="tiny", stream="text-own")
    if engine == "1b":
        return replace(paced, engine="1b", stream="zipf-32k", batch=1)
    return paced


def _value(point: Point, field: str) -> Any:
    return getattr(point, field)
