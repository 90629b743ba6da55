"""Dataclasses to and from plain values of JSON, strictly: an unknown or missing name, or a wrong type, is refused.

A field with `OPTIONAL` metadata came later: it is left out where it has its default, so that what was written before
has the same text, and may be missing.
"""

from __future__ import annotations

import dataclasses
import types
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from tolbuild.table.errors import FormatError

T = TypeVar("T")

OPTIONAL = {"optional": True}
"""Metadata of a field that documents may be without."""


def to_plain(value: Any) -> Any:
    """Dicts, lists and scalars of a dataclass of dataclasses, tuples, dicts and scalars."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [field for field in dataclasses.fields(value) if not _left_out(field, getattr(value, field.name))]
        return {field.name: to_plain(getattr(value, field.name)) for field in fields}
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
    required = {field.name for field in dataclasses.fields(cls) if not field.metadata.get("optional")}  # type: ignore[arg-type]
    unknown, missing = sorted(value.keys() - hints.keys()), sorted(required - value.keys())
    if unknown or missing:
        raise FormatError(f"{where}: unknown names {unknown}, missing names {missing}")
    parts = {name: _convert(hint, value[name], f"{where}.{name}") for name, hint in hints.items() if name in value}
    try:
        return cls(**parts)
    except ValueError as error:
        raise FormatError(f"{where}: {error}") from error


def _left_out(field: dataclasses.Field[Any], value: Any) -> bool:
    return bool(field.metadata.get("optional")) and value == field.default


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


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
