"""The compiled helper, where it was built (`tolserve/native/*.c`, Linux)."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any


@cache
def load() -> Any | None:
    """The module `tolserve.native._rowpath`; None where it was not compiled for this machine."""
    try:
        return importlib.import_module("tolserve.native._rowpath")
    except ImportError:
        return None
