"""A table version: what it holds, how its codes are made, where every object is and what its bytes must sum to."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from numpy.typing import NDArray

from tolbuild.table import documents
from tolbuild.table.arrays import ArrayRef, ObjectSum
from tolbuild.table.coding import RowCoding
from tolbuild.table.errors import FormatError
from tolbuild.table.layout import RowLayout
from tolbuild.table.plain import OPTIONAL, from_plain, to_plain

FORMAT = "tol/1"
IDENTITY_BYTES = 16

IDENTITY, BASIS = "identity", "basis"
"""Transforms: rows as they are; coefficients in an orthonormal basis, array `basis-LLL` [R, D] by layer. A layer with
`identity` in the place of that array has its rows as they are, without mean."""
NONE, MEAN = "none", "mean"
"""Predictors: nothing; the layer's mean row, array `means` [L, D]."""
CAST, SCALED = "cast", "scaled"
"""Quantisers: rounded to the type; integers times a scale by component, array `scales` [L, D], or folded into the basis
where there is one, and times the token's own scale in the layers that `CodeType` names."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One step of a band's coding: its name and the small arrays that it reads, those by layer in layer order."""

    name: str
    arrays: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TokenClass:
    """Tokens of a band that are stored alike. This version of the format has one class, `all`, in order of token id."""

    name: str
    codes: ArrayRef


@dataclass(frozen=True, kw_only=True)
class CodeType:
    """What the stored bytes of a band are, where the array's own type does not say it; see tolbuild.table.coding.

    dtype: of a code. token_scaled: layers whose codes are multiplied with a scale that stands in the token's row.
    """

    dtype: str
    token_scaled: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Band:
    """Consecutive layers stored together; `ranks[i]` columns for `layers[i]`.

    A row of layer l is  predictor_l + transform_l(quantiser_l(codes)). code_type: None where the array's type is the
    codes'.

    Raises:
        ValueError: the numbers contradict each other.
    """

    index: int
    layers: tuple[int, ...]
    ranks: tuple[int, ...]
    transform: Part
    predictor: Part
    quantiser: Part
    classes: tuple[TokenClass, ...]
    code_type: CodeType | None = field(default=None, metadata=OPTIONAL)

    def __post_init__(self) -> None:
        if not self.layers or len(self.layers) != len(self.ranks) or min(self.ranks) < 1:
            raise ValueError(f"band {self.index} has layers {self.layers} and ranks {self.ranks}")
        if [token_class.name for token_class in self.classes] != ["all"]:
            names = [token_class.name for token_class in self.classes]
            raise ValueError(f"band {self.index} has the token classes {names}; this reader knows one class, 'all'")
        if not set(self.token_scaled) <= set(self.layers):
            raise ValueError(f"band {self.index} has the layers {self.layers}, not all of {self.token_scaled}")
        coding, stored = self.coding, (self.layout.num_columns, self.codes.dtype)
        if stored != (coding.num_items, coding.item):
            raise ValueError(
                f"band {self.index}: {stored[0]} columns of {stored[1]}; {coding.dtype} codes of ranks that sum to "
                f"{sum(self.ranks)} are {coding.num_items} of {coding.item}"
            )
        known = ((self.transform, (IDENTITY, BASIS)), (self.predictor, (NONE, MEAN)), (self.quantiser, (CAST, SCALED)))
        for part, kinds in known:
            if part.name not in kinds:
                raise ValueError(f"band {self.index} is made with {part.name!r}; this reader knows {', '.join(kinds)}")

    @property
    def codes(self) -> ArrayRef:
        """The array of codes."""
        return self.classes[0].codes

    @property
    def layout(self) -> RowLayout:
        """Addresses of the codes."""
        return self.codes.layout

    @property
    def dtype(self) -> str:
        """Type of a code: float32, bfloat16, float16, int8 or int4."""
        return self.codes.dtype if self.code_type is None else self.code_type.dtype

    @property
    def token_scaled(self) -> tuple[int, ...]:
        """Layers whose codes are multiplied with a scale in the token's row."""
        return () if self.code_type is None else self.code_type.token_scaled

    @cached_property
    def coding(self) -> RowCoding:
        """What the bytes of a row are."""
        scaled = tuple(layer in self.token_scaled for layer in self.layers)
        return RowCoding(dtype=self.dtype, ranks=self.ranks, token_scaled=scaled)

    @property
    def row_bytes(self) -> int:
        """Bytes of one token."""
        return self.layout.row_bytes

    def values(self, layer: int, stored: NDArray[Any]) -> NDArray[Any]:
        """What a layer's codes stand for before transform and predictor, by component scales apart; see RowCoding."""
        return self.coding.values(stored, self.layers.index(layer))

    def basis_of(self, layer: int) -> str | None:
        """Name of the array with the basis of one of its layers; None where its codes are its rows."""
        if self.transform.name == IDENTITY:
            return None
        name = self.transform.arrays[self.layers.index(layer)]
        return None if name == IDENTITY else name


@dataclass(frozen=True, kw_only=True)
class LayerStats:
    """What was measured of one layer while it was stored, over all tokens.

    relative_error: |stored - exact| / |exact| over all rows (Frobenius norms). max_relative_error: of the worst row,
    whose norm counts what tolbuild.table.stats.least_norm says at least.
    energy: |exact|^2 summed over all values. energy_kept: share of the centred energy within the rank, 1 at full,
    weighted where tokens have weights. weighted_error: relative_error with each token's weight, where they have any.
    """

    layer: int
    rank: int
    relative_error: float
    max_relative_error: float
    energy: float
    energy_kept: float
    weighted_error: float | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """One version. `arrays` are the small ones: row_crc32c [V, bands] and what the bands' parts name.

    Raises:
        ValueError: the numbers contradict each other.
    """

    version: int
    plan_hash: str
    model_fingerprint: str
    vocab_size: int
    num_layers: int
    hidden_size: int
    bands: tuple[Band, ...]
    dropped_layers: tuple[int, ...]
    layer_stats: tuple[LayerStats, ...]
    arrays: tuple[ArrayRef, ...]
    receipts: tuple[ObjectSum, ...]
    metadata: tuple[ObjectSum, ...]
    options: dict[str, Any] = field(default_factory=dict)
    write_id: str = ""
    created: str = ""

    def __post_init__(self) -> None:
        if self.version < 1:
            raise ValueError(f"version {self.version}; versions count from 1")
        if [band.index for band in self.bands] != list(range(len(self.bands))) or not self.bands:
            raise ValueError(f"bands are numbered {[band.index for band in self.bands]}; expected 0, 1, ...")
        layers = sorted([layer for band in self.bands for layer in band.layers] + list(self.dropped_layers))
        if layers != list(range(self.num_layers)):
            raise ValueError(f"bands and dropped layers name the layers {layers} of {self.num_layers}")
        names = {array.name for array in self.arrays}
        for band in self.bands:
            if band.layout.vocab_size != self.vocab_size:
                raise ValueError(f"band {band.index} has {band.layout.vocab_size} tokens; V is {self.vocab_size}")
            wanted = {name for part in (band.transform, band.predictor, band.quantiser) for name in part.arrays}
            wanted = wanted - {IDENTITY} | {"row_crc32c"}
            if not wanted <= names:
                raise ValueError(f"band {band.index} needs the arrays {sorted(wanted - names)}, which are not named")

    @property
    def key(self) -> str:
        """Where the document is."""
        return manifest_key(self.version)

    @cached_property
    def identity(self) -> bytes:
        """16 bytes that name this version wherever rows of it travel."""
        return documents.body_digest(self._body())[:IDENTITY_BYTES]

    @property
    def objects(self) -> tuple[ObjectSum, ...]:
        """Every object that the version consists of, the manifest itself apart."""
        arrays = [*(band.codes for band in self.bands), *self.arrays]
        return (*(item for array in arrays for item in array.objects), *self.receipts, *self.metadata)

    @property
    def total_bytes(self) -> int:
        """Bytes of the arrays: what a reader needs, receipts apart."""
        return sum(item.size for item in self.objects) - sum(item.size for item in self.receipts)

    def array(self, name: str) -> ArrayRef:
        """One of the small arrays.

        Raises:
            KeyError: there is none of that name.
        """
        return {array.name: array for array in self.arrays}[name]

    def band_of(self, layer: int) -> Band | None:
        """The band that holds a layer; None where it is dropped.

        Raises:
            ValueError: the model has no such layer.
        """
        if not 0 <= layer < self.num_layers:
            raise ValueError(f"layer {layer}: the model has layers 0 to {self.num_layers - 1}")
        return next((band for band in self.bands if layer in band.layers), None)

    def to_bytes(self) -> bytes:
        """The document."""
        return documents.encode(self._body())

    def _body(self) -> dict[str, Any]:
        return {"format": FORMAT, **to_plain(self)}

    @classmethod
    def from_bytes(cls, data: bytes, key: str) -> Manifest:
        """The manifest of a document.

        Raises:
            TableCorruptError: the bytes are not what was written.
            FormatError: another format, or a version of it that this reader does not know.
        """
        body = documents.decode(data, key)
        found = body.pop("format", None)
        if found != FORMAT:
            raise FormatError(f"{key} has the format {found!r}; this reader knows {FORMAT!r}")
        return from_plain(cls, body, key)


def manifest_key(version: int) -> str:
    """Key of a version's document."""
    return f"manifests/{version:08d}.json"
