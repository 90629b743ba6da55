"""Rows by name: "512-int8" is rank 512 of the 1B width in int8, "full-float16" the row itself."""

from __future__ import annotations

from dataclasses import dataclass

from tolserve.memory.spec import RowSpec

WIDTH_1B = 2048
_TYPES = {"float32": "fp32", "float16": "fp16", "int8": "int8", "int4": "int4"}


@dataclass(frozen=True, kw_only=True)
class Codes:
    """A form of rows.

    Attributes:
        rank: of the 1B width, or None for full rows.
        dtype: of a code.
    """

    rank: int | None
    dtype: str

    def rank_for(self, width: int) -> int:
        """The rank for a model of another width: the same share of it."""
        return width if self.rank is None else self.rank * width // WIDTH_1B

    @property
    def build_type(self) -> str:
        """The type as a build names it."""
        return _TYPES[self.dtype]

    def spec(self, *, width: int, num_layers: int, layers_per_band: int, vocab_size: int) -> RowSpec:
        """Rows of a model of this shape."""
        return RowSpec.uniform(
            num_layers=num_layers,
            layers_per_band=layers_per_band,
            rank=self.rank_for(width),
            dtype=self.dtype,
            vocab_size=vocab_size,
        )


def parse(name: str) -> Codes:
    """Codes from their name.

    Raises:
        ValueError: it is not RANK-TYPE.
    """
    rank, dash, dtype = name.partition("-")
    if not dash or dtype not in _TYPES or not (rank == "full" or (rank.isdigit() and 0 < int(rank) <= WIDTH_1B)):
        raise ValueError(
            f"codes are {name!r}; they must be RANK-TYPE, RANK full or 1 to {WIDTH_1B}, TYPE {list(_TYPES)}"
        )
    return Codes(rank=None if rank == "full" else int(rank), dtype=dtype)
