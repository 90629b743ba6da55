"""The shape of a model, as its config.json states it.

Field names are Hugging Face's where it has one for the thing; `kind`, `beta` and the two widths of a divided
feed-forward network are this family's own (MemoryLLM, arXiv 2602.00398).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

Kind = Literal["base", "memory", "flex"]
KINDS: tuple[Kind, ...] = ("base", "memory", "flex")

_PAPER_MEMORY_WIDTHS = {(2048, 1): 4778, (2048, 2): 4096, (2048, 3): 3418}
"""K_M of the paper's 1B Flex models by (d, beta); other shapes take K - K_C."""

_COUNTS = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
_LEAST = {
    **dict.fromkeys((*_COUNTS, "max_position_embeddings"), 1),
    **dict.fromkeys(("num_key_value_heads", "context_intermediate_size", "memory_intermediate_size", "beta"), 0),
    **dict.fromkeys(("rms_norm_eps", "layer_norm_eps", "initializer_range"), 0.0),
}
"""The least that a size or a number may be; a 0 is derived where it can be."""

_KINDS_OF_VALUE: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "a whole number"),
    "int | None": ((int, type(None)), "a whole number or null"),
    "float": ((int, float), "a number"),
    "bool": ((bool,), "true or false"),
    "str": ((str,), "a string"),
    "Kind": ((str,), "a string"),
}

_FOREIGN_KEYS = frozenset({"architectures", "transformers_version", "auto_map", "use_cache"})
"""Keys that Hugging Face tools write into every config.json and that say nothing of the model."""


def split_widths(hidden_size: int, intermediate_size: int, beta: int) -> tuple[int, int]:
    """Widths (K_C, K_M) of a Flex layer's two networks.

    K_C = beta * d / 3 rounded to a multiple of 8, so that FFN-C holds 3 d K_C, about beta d^2 parameters;
    K_M is the paper's figure where it gives one, else K - K_C.
    """
    context = max(8, round(beta * hidden_size / 3 / 8) * 8)
    memory = _PAPER_MEMORY_WIDTHS.get((hidden_size, beta), intermediate_size - context)
    if memory < 1:
        raise ValueError(
            f"intermediate_size {intermediate_size} leaves no width for the memory once beta {beta} at hidden_size "
            f"{hidden_size} takes {context}"
        )
    return context, memory


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """One model of the family. All sizes are counts of elements.

    `intermediate_size` is K of the undivided feed-forward network. For `flex`, `context_intermediate_size` (K_C)
    and `memory_intermediate_size` (K_M) are derived from `beta` when left at 0.

    Raises:
        ValueError: a value of another type or out of its range, by name; heads do not divide the width, or `beta` does
            not fit `kind`.
    """

    kind: Kind
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    num_key_value_heads: int = 0
    beta: int = 0
    context_intermediate_size: int = 0
    memory_intermediate_size: int = 0
    max_position_embeddings: int = 2048
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5
    layer_norm_eps: float = 1e-5
    tie_word_embeddings: bool = True
    initializer_range: float = 0.02
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    torch_dtype: str = "float32"
    model_type: str = "memoryllm"

    def __post_init__(self) -> None:
        for field in fields(self):
            _check_value(field.name, str(field.type), getattr(self, field.name))
        if self.kind not in KINDS:
            raise ValueError(f"kind is {self.kind!r}; it must be one of {', '.join(KINDS)}")
        if self.model_type != "memoryllm":
            raise ValueError(f"model_type is {self.model_type!r}; this reader knows 'memoryllm'")
        self._derive()
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(
                f"hidden_size {self.hidden_size} over {self.num_attention_heads} heads must give an even head width"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is no multiple of num_key_value_heads "
                f"{self.num_key_value_heads}"
            )

    def _derive(self) -> None:
        if not self.num_key_value_heads:
            object.__setattr__(self, "num_key_value_heads", self.num_attention_heads)
        if self.kind == "flex":
            if self.beta not in (1, 2, 3):
                raise ValueError(f"beta is {self.beta}; a flex model needs 1, 2 or 3")
            context, memory = split_widths(self.hidden_size, self.intermediate_size, self.beta)
            if not self.context_intermediate_size:
                object.__setattr__(self, "context_intermediate_size", context)
            if not self.memory_intermediate_size:
                object.__setattr__(self, "memory_intermediate_size", memory)
            return
        if self.beta:
            raise ValueError(f"beta is {self.beta}; only a flex model divides its feed-forward network")
        context, memory = (self.intermediate_size, 0) if self.kind == "base" else (0, self.intermediate_size)
        for name, width in (("context_intermediate_size", context), ("memory_intermediate_size", memory)):
            if getattr(self, name) not in (0, width):
                raise ValueError(f"{name} is {getattr(self, name)}; a {self.kind} model has {width}")
            object.__setattr__(self, name, width)

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def has_memory(self) -> bool:
        """Whether the model has feed-forward networks of the token id alone: only then has it a table."""
        return self.kind in ("memory", "flex")

    @property
    def has_context_ffn(self) -> bool:
        """Whether the model has feed-forward networks on the residual stream."""
        return self.kind in ("base", "flex")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """The config that a parsed config.json states. `dtype` is another spelling of `torch_dtype`.

        Raises:
            ValueError: an unknown key, a missing one or a value that does not fit, each named.
        """
        known = {f.name for f in fields(cls)}
        given = _one_dtype({key: value for key, value in values.items() if key not in _FOREIGN_KEYS})
        unknown = sorted(set(given) - known)
        if unknown:
            raise ValueError(f"unknown config keys: {', '.join(unknown)}; known ones: {', '.join(sorted(known))}")
        try:
            return cls(**given)
        except TypeError as error:
            raise ValueError(f"the config does not describe a model: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """What config.json holds; `from_dict` of it gives an equal config."""
        return asdict(self)


def _check_value(name: str, kind: str, value: object) -> None:
    types, words = _KINDS_OF_VALUE[kind]
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        raise ValueError(f"{name} is {value!r}; it must be {words}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} is {value!r}; it must be a finite number")
    if isinstance(value, (int, float)) and value < _LEAST.get(name, value):
        raise ValueError(f"{name} is {value!r}; it must be at least {_LEAST[name]}")
    if name == "rope_theta" and isinstance(value, (int, float)) and value <= 0:
        raise ValueError(f"{name} is {value!r}; it must be above 0")


def _one_dtype(given: dict[str, Any]) -> dict[str, Any]:
    if "dtype" not in given:
        return given
    dtype = given.pop("dtype")
    if given.setdefault("torch_dtype", dtype) != dtype:
        raise ValueError(f"dtype is {dtype!r} and torch_dtype is {given['torch_dtype']!r}; they are one thing")
    return given
