"""Fresh places of every writable kind."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from s3_kit import s3_server

from tolbuild.table import Credentials, Store, open_store

OpenAgain = Callable[[], Store]
"""Another store of the same place, as another process would open it."""


@pytest.fixture(scope="module", autouse=True)
def no_cluster_left() -> Iterator[None]:
    """The cluster that networks of Ray have started ends with the module."""
    yield
    if "ray_kit" in sys.modules:
        sys.modules["ray_kit"].end()


@pytest.fixture(scope="session")
def s3() -> Iterator[Credentials]:
    with s3_server("tables") as credentials:
        yield credentials


@pytest.fixture(params=["file", "memory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Credentials | None]:
    """URL and credentials of a place that nothing is at."""
    if request.param == "file":
        return str(tmp_path / "place"), None
    name = secrets.token_hex(6)
    if request.param == "memory":
        return f"memory://{name}/table", None
    return f"s3://tables/{name}/table", request.getfixturevalue("s3")


@pytest.fixture
def open_again(place: tuple[str, Credentials | None]) -> Iterator[OpenAgain]:
    opened: list[Store] = []

    def open_one() -> Store:
        opened.append(open_store(*place))
        return opened[-1]

    yield open_one
    for store in opened:
        store.close()


@pytest.fixture
def store(open_again: OpenAgain) -> Store:
    return open_again()
