"""Options from a frozen dataclass: one place says how every command line of ours reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import tyro

Config = TypeVar("Config")


def parse(
    make: Callable[..., Config],
    *,
    module: str,
    doc: str | None,
    arguments: Sequence[str] | None,
    positional: bool = False,
) -> Config:
    """The config that the arguments (None: those of this process) give; `make` is a dataclass or a function.

    Args:
        module: what is run with `python -m`.
        positional: whether options without a default are given by place, not by name.

    Raises:
        SystemExit: after --help, and with code 2 for an option that is unknown, missing or of the wrong type.
        ValueError: what `make` refuses.
    """
    return tyro.cli(
        make,
        prog=f"python -m {module}",
        description=doc,
        args=arguments,
        registry=_registry(),
        config=(tyro.conf.FlagCreatePairsOff, *((tyro.conf.PositionalRequiredArgs,) if positional else ())),
    )


def _registry() -> tyro.constructors.ConstructorRegistry:
    """Options that may be left out read as those of their type: STR, not {None}|STR."""
    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def optional(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec[Any] | None:
        kinds = [kind for kind in get_args(info.type) if kind is not type(None)]
        if len(kinds) != 1 or len(get_args(info.type)) != 2:
            return None
        (kind,) = kinds
        choices = tuple(map(str, get_args(kind))) if get_origin(kind) is Literal else None
        if choices is None and kind not in (str, int, float, Path):
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="{" + ",".join(choices) + "}" if choices else "PATH" if kind is Path else kind.__name__.upper(),
            instance_from_str=lambda words: words[0] if choices else kind(words[0]),
            is_instance=lambda value: value is None or choices is not None or isinstance(value, kind),
            str_from_instance=lambda value: ["none" if value is None else str(value)],
            choices=choices,
        )

    return registry
