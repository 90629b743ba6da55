"""A few loaded things by number, shared by the threads of one worker."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Cache(Generic[T]):
    """The `capacity` most recently used results of `load`. One thread loads at a time, so nothing is loaded twice."""

    def __init__(self, load: Callable[[int], T], capacity: int) -> None:
        self._load = load
        self._capacity = capacity
        self._held: OrderedDict[int, T] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, key: int) -> T:
        """The thing of a number, loaded when it is not held."""
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key]
            while len(self._held) >= self._capacity:
                self._held.popitem(last=False)
            value = self._held[key] = self._load(key)
            return value
