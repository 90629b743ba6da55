"""Options from a frozen dataclass: one place says how every command line of ours reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

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
        config=(tyro.conf.FlagCreatePairsOff, *((tyro.conf.PositionalRequiredArgs,) if positional else ())),
    )
