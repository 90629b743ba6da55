"""What a row cache held, in a file: a node that starts anew begins with it. Ids only, so that any table version, cache
size and policy can go on from them.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from tolbuild.table.errors import ObjectNotFoundError, ToLError
from tolbuild.table.store import check_writable
from tolserve.memory.files import store_of
from tolserve.memory.spec import Ids

SAVE_PERIOD_S = 180.0
FORMAT = "memoryllm-tol row cache"

_log = logging.getLogger(__name__)


def write_state(url: str, ids: Ids, vocab_size: int) -> None:
    """Put the ids of a cache, most wanted first, in place at once.

    Raises:
        ValueError, ToLError: the place cannot be written.
    """
    state = {"format": FORMAT, "version": 1, "vocab_size": vocab_size, "ids": ids.tolist()}
    with store_of(url) as (store, name):
        store.write(name, json.dumps(state).encode())


def read_state(url: str, vocab_size: int) -> Ids | None:
    """The ids that `write_state` put there, int64, distinct; None where there is no file.

    Raises:
        ValueError: it cannot be read, is something else, or is of another vocabulary.
    """
    try:
        with store_of(url) as (store, name):
            data = store.read(name)
    except ObjectNotFoundError:
        return None
    except ToLError as error:
        raise ValueError(f"the cache state at {url} cannot be read: {error}") from error
    try:
        state = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{url} holds no JSON: it is no saved cache state ({error})") from error
    return _ids(url, state, vocab_size)


def check_state(url: str, vocab_size: int) -> None:
    """Make sure before nodes start that they can begin with the state, if there is one, and save it.

    Raises:
        ValueError: as `read_state`, or the URL is of a kind that cannot be written.
    """
    check_writable(url)
    read_state(url, vocab_size)


def _ids(url: str, state: Any, vocab_size: int) -> Ids:
    if not isinstance(state, dict) or state.get("format") != FORMAT or state.get("version") != 1:
        raise ValueError(f"{url} is no cache state of this version; name a file of its own for the state")
    if state.get("vocab_size") != vocab_size:
        raise ValueError(
            f"{url} is the cache state of a vocabulary of {state.get('vocab_size')} tokens; the table has {vocab_size}"
        )
    ids = state.get("ids")
    if not isinstance(ids, list) or not _distinct(ids, vocab_size):
        raise ValueError(f"{url} is a damaged cache state: its ids are not distinct numbers below {vocab_size}")
    return np.array(ids, np.int64)


def _distinct(ids: list[Any], vocab_size: int) -> bool:
    return all(type(token) is int and 0 <= token < vocab_size for token in ids) and len(set(ids)) == len(ids)


class StateKeeper:
    """Saves a cache's ids every few minutes, in a thread of its own, and at the end; an empty cache is not saved.

    Args:
        cached_ids: what to save, as `CachedSource.cached_ids`.
    """

    def __init__(
        self, url: str, cached_ids: Callable[[], Ids], vocab_size: int, *, period_s: float = SAVE_PERIOD_S
    ) -> None:
        self._url, self._cached_ids, self._vocab_size = url, cached_ids, vocab_size
        self._period_s = period_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cache-state", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Save once more and end the thread."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        ended = False
        while not ended:
            ended = self._stopping.wait(self._period_s)
            self._save()

    def _save(self) -> None:
        """A state that cannot be saved costs a cold start, not the node."""
        ids = self._cached_ids()
        if len(ids) == 0:
            return
        try:
            write_state(self._url, ids, self._vocab_size)
        except (ToLError, ValueError) as error:
            _log.warning("the cache state could not be saved at %s: %s", self._url, error)
