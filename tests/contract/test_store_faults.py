"""What a user meets when a place is wrong, closed, full or gone: a typed error that says which place and why."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from table_kit import table_spec, write_table

from tolbuild.table import Credentials, Store, StoreError, TableNotFoundError, open_store, open_table
from tolbuild.table.check import check_table
from tolbuild.table.local_store import SCRATCH, LocalStore, remove_dead_scratch, scratch_owner

REPOSITORY = Path(__file__).parents[2]

OPERATIONS: dict[str, Callable[[Store], Any]] = {
    "list": lambda store: store.list(),
    "read": lambda store: store.read("key"),
    "size": lambda store: store.size("key"),
    "ranges": lambda store: store.read_scattered("key", np.array([0]), [np.empty(1, np.uint8)]),
    "write": lambda store: store.write("key", b"x"),
    "create": lambda store: store.create("key", b"x"),
    "delete": lambda store: store.delete("key"),
}


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "the URL is empty"),
        ("nope://bucket/table", "nope"),
        ("s3://", "names no bucket"),
        ("file://elsewhere/table", "names the host 'elsewhere'"),
    ],
)
def test_a_wrong_url_is_the_callers_mistake(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_table(url)


@pytest.mark.parametrize("url", ["does/not/exist", "file:///does/not/exist", "memory://nothing-here"])
def test_a_place_without_table(url: str) -> None:
    with pytest.raises(TableNotFoundError, match="no version is published; check the URL"):
        open_table(url)


@pytest.mark.parametrize("name", ["list", "read", "size", "ranges", "write", "create"])
def test_no_bucket(name: str, s3: Credentials) -> None:
    with pytest.raises(StoreError, match="no such bucket"):
        OPERATIONS[name](open_store("s3://missing/table", s3))


class Forbids(BaseHTTPRequestHandler):
    """An S3 server that lets nobody in."""

    protocol_version = "HTTP/1.1"  # whose clients may wait for "100 Continue" before they send a body

    def refuse(self) -> None:
        self.rfile.read(int(self.headers.get("content-length") or 0))
        body = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        self.send_response(403)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = refuse

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Ranges(SimpleHTTPRequestHandler):
    """A file server that answers range requests."""

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if "Range" not in self.headers or not path.is_file():
            super().do_GET()
            return
        first, last = self.headers["Range"].removeprefix("bytes=").split("-")
        part = path.read_bytes()[int(first) : int(last) + 1]
        self.send_response(206)
        self.send_header("content-length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[Callable[[Any], str]]:
    servers: list[ThreadingHTTPServer] = []

    def start(handler: Any) -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("name", OPERATIONS)
def test_no_permission_on_s3(name: str, s3: Credentials, serve: Callable[[Any], str]) -> None:
    store = open_store("s3://tables/x", replace(s3, endpoint_url=serve(Forbids)))
    with pytest.raises(StoreError, match="no permission for s3://tables/x"):
        OPERATIONS[name](store)


@pytest.mark.parametrize("name", ["list", "ranges"])
def test_nobody_answers(name: str, s3: Credentials) -> None:
    store = open_store("s3://tables/x", replace(s3, endpoint_url="http://127.0.0.1:9"))
    with pytest.raises(StoreError, match=r"127\.0\.0\.1:9"):
        OPERATIONS[name](store)


def test_keys_are_not_shown(s3: Credentials) -> None:
    assert "secret" not in repr(Credentials(access_key="secret", secret_key="secret", session_token="secret"))


def test_credentials_come_from_the_environment_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_SESSION_TOKEN", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://a")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "r")
    assert Credentials.from_environment() == Credentials(
        endpoint_url="http://a", access_key="k", secret_key="s", region="r"
    )
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://b")
    assert Credentials.from_environment().endpoint_url == "http://b"


def test_a_table_behind_http_is_read_only(tmp_path: Path, serve: Callable[[Any], str]) -> None:
    made = write_table(open_store(tmp_path / "t"), table_spec())
    url = serve(partial(Ranges, directory=str(tmp_path))) + "/t"
    with open_table(url, version=1) as table:
        assert np.array_equal(table.codes([5, 199, 64], 0), made.codes[0][[5, 199, 64]])
        np.testing.assert_allclose(table.rows([7]), made.rows_VLD[[7]], rtol=1e-3)
    with open_table(url) as table:
        assert table.manifest == made.manifest
    assert check_table(open_store(url)).sound
    for name in ("write", "create", "delete"):
        with pytest.raises(StoreError, match="read-only"):
            OPERATIONS[name](open_store(url))
    with pytest.raises(StoreError, match="nothing is listed"):
        open_table(url + "x")


WITHOUT_RIGHTS = """
import os, sys
from tolbuild.table import StoreError, open_store
import numpy as np
if os.getuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
store = open_store(sys.argv[1])
for attempt in (
    lambda: store.list(), lambda: store.read("closed/key"), lambda: store.write("closed/new", b"x"),
    lambda: store.read_scattered("closed/key", np.array([0]), [np.empty(1, np.uint8)]),
):
    try:
        attempt()
    except StoreError as error:
        print(error)
"""


def run_python(script: str, *arguments: str, preexec_fn: Callable[[], None] | None = None) -> list[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=preexec_fn,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_no_permission_on_disk(tmp_path: Path) -> None:
    for folder in [tmp_path, *tmp_path.parents]:
        if folder.stat().st_uid == os.getuid() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o011)
    place = tmp_path / "table"
    open_store(place).write("closed/key", b"x")
    place.chmod(0o755)
    (place / "closed").chmod(0)
    try:
        lines = run_python(WITHOUT_RIGHTS, str(place))
    finally:
        (place / "closed").chmod(0o755)
    assert len(lines) == 4 and all("no permission for" in line for line in lines), lines


FULL = """
import sys
import numpy as np
from tolbuild.table import StoreError, open_store
store = open_store(sys.argv[1])
store.write("small", b"x" * 100)
for attempt in (
    lambda: store.write("large", np.zeros(200_000, np.uint8)),
    lambda: store.create("large", bytes(200_000)),
):
    try:
        attempt()
    except StoreError as error:
        print(error)
print([info.key for info in store.list()])
"""


def test_disk_full(tmp_path: Path) -> None:
    """A limit on file size stands for the disk's end: the same path through the code, by EFBIG."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    first, second, keys = run_python(FULL, str(tmp_path), preexec_fn=limit)
    assert "no space to write" in first and "bytes are free" in first and str(tmp_path / "large") in first
    assert "no space to write" in second
    assert keys == "['small']"


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="file"):
        open_store(tmp_path / "file").write("key", b"x")
    with pytest.raises(StoreError, match="file"):
        open_store(tmp_path).write("file/key", b"x")


def test_unfinished_writes_of_dead_processes_are_removed(tmp_path: Path) -> None:
    store, living = LocalStore(tmp_path), f"{SCRATCH}/{scratch_owner()}-9999"
    store.write(living, b"of a living process")
    store.write(living.replace(f"-{os.getpid()}-", f"-{2**22 + 1}-"), b"of a dead one")
    store.write(f"{SCRATCH}/elsewhere-1-0", b"of another machine")
    assert remove_dead_scratch(store) == 1
    assert len(store.list(SCRATCH)) == 2


IMPORTS = """
import sys
from tolbuild.table import open_table
with open_table(sys.argv[1]) as table:
    table.rows([0, 1, 199])
heavy = {"torch", "ray", "zarr", "fsspec", "s3fs", "obstore", "boto3", "aiohttp", "tyro", "rich", "pyarrow"}
print(sorted(heavy & set(sys.modules)))
"""


def test_reading_local_files_imports_little(tmp_path: Path) -> None:
    write_table(open_store(tmp_path), table_spec(rank=4, dtype="int8"))
    assert run_python(IMPORTS, str(tmp_path)) == ["[]"]
