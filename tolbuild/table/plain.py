"""Dataclasses to and from plain values of JSON, strictly: an unknown or missing name, or a wrong type, is refused.

A field whose default is None is left out while it is None: documents from before the field was there stay as they are.
"""

from __future__ import annotations

import dataclasses
import types
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from tolbuild.table.errors import FormatError

T = TypeVar("T")


def to_plain(value: Any) -> Any:
    """Dicts, lists and scalars of a dataclass of dataclasses, tuples, dicts and scalars."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        optional = _optional(type(value))
        pairs = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {name: to_plain(item) for name, item in pairs.items() if item is not None or name not in optional}
    if isinstance(value, (tuple, list)):
        return [to_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(name): to_plain(item) for name, item in value.items()}
    return value


def from_plain(cls: type[T], value: Any, where: str) -> T:
    """The dataclass `cls` of a JSON object.

    Args:
        where: name of the document in messages.

    Raises:
        FormatError: names or types that `cls` has not, or values that it refuses.
    """
    if not isinstance(value, dict):
        raise FormatError(f"{where}: expected an object, found {type(value).__name__}")
    hints = _hints(cls)  # type: ignore[arg-type]
    optional = _optional(cls)  # type: ignore[arg-type]
    unknown, missing = sorted(value.keys() - hints.keys()), sorted(hints.keys() - value.keys() - optional)
    if unknown or missing:
        raise FormatError(f"{where}: unknown names {unknown}, missing names {missing}")
    parts = {name: _convert(hint, value[name], f"{where}.{name}") for name, hint in hints.items() if name in value}
    try:
        return cls(**parts)
    except ValueError as error:
        raise FormatError(f"{where}: {error}") from error


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


@cache
def _optional(cls: type) -> frozenset[str]:
    return frozenset(field.name for field in dataclasses.fields(cls) if field.default is None)


def _convert(hint: Any, value: Any, where: str) -> Any:
    if hint is Any:
        return value
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        choices = [choice for choice in get_args(hint) if choice is not type(None)]
        return None if value is None else _convert(choices[0], value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise FormatError(f"{where}: expected a list, found {type(value).__name__}")
        return tuple(_convert(get_args(hint)[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if dataclasses.is_dataclass(hint):
        return from_plain(hint, value, where)  # type: ignore[arg-type]
    kind = origin or hint
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise FormatError(f"{where}: expected {kind.__name__}, found {value!r}")
    return value
