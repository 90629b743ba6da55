"""Tables of the bench on an S3 server of this machine: s3rver on files where it is installed, else moto in memory."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from tolbuild.bench import s3rver
from tolbuild.table import Credentials, open_store
from tolserve.bench.cost.nodes import on_core, start
from tolserve.bench.cost.point import Point

BUCKET = "tables"
_KEY = "local"
"""moto takes any."""


def missing(point: Point) -> str:
    """Why the rows of a point cannot be put on an S3 server here; empty where they can."""
    if importlib.util.find_spec("obstore") is None:
        return "obstore is not installed: pip install 'memoryllm-tol[stores]'"
    reason = s3rver.missing()
    if not reason:
        return ""
    if importlib.util.find_spec("moto") is None:
        return f"{reason}, and moto is not installed"
    return "" if point.engine == "tiny" else f"{reason}, and moto would keep {point.engine}'s table in memory"


class Objects:
    """A server that starts with its first table and ends with `close`, its objects with it.

    Args:
        folder: where a folder for objects may be made; it must be there.
        core: that the server runs on.
    """

    def __init__(self, folder: Path, core: int | None) -> None:
        self._folder = folder
        self._core = core
        self._stack = ExitStack()
        self._credentials: Credentials | None = None
        self._copied: set[str] = set()

    def table(self, path: str) -> tuple[str, Credentials]:
        """URL of a copy of the table in a local folder, and how its server is asked."""
        if self._credentials is None:
            self._credentials = self._stack.enter_context(_server(self._folder, self._core))
        url = f"s3://{BUCKET}/{Path(path).name}"
        if url not in self._copied:
            _copy(path, url, self._credentials)
            self._copied.add(url)
        return url, self._credentials

    def close(self) -> None:
        """End the server."""
        self._stack.close()
        self._credentials = None
        self._copied.clear()


def _copy(path: str, url: str, credentials: Credentials) -> None:
    with closing(open_store(path)) as here, closing(open_store(url, credentials)) as there:
        for one in here.list():
            there.write(one.key, here.read(one.key))


@contextmanager
def _server(folder: Path, core: int | None) -> Iterator[Credentials]:
    if not s3rver.missing():
        with TemporaryDirectory(prefix="objects-", dir=folder) as objects, ExitStack() as stack:
            with on_core(core):
                credentials = stack.enter_context(s3rver.s3rver(Path(objects), BUCKET))
            yield credentials
        return
    with start({"kind": "moto", "bucket": BUCKET, "core": core}) as (host, port):
        yield Credentials(endpoint_url=f"http://{host}:{port}", access_key=_KEY, secret_key=_KEY, region="us-east-1")
