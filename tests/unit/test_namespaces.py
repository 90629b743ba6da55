"""Network namespaces of our own: joined with each other, cut off from the rest, and always gone at the end."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from cluster import namespaces
from cluster.namespaces import Namespace, NotPermittedError, two_namespaces

SLEEP = (sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)")
LISTEN = (
    "import socket; s = socket.create_server(('0.0.0.0', 7000)); print('up', flush=True); s.accept()[0].send(b'hi')"
)
CONNECT = "import socket, sys; print(socket.create_connection((sys.argv[1], int(sys.argv[2])), 5).recv(2).decode())"


@pytest.fixture
def pair() -> Iterator[tuple[Namespace, Namespace]]:
    try:
        with two_namespaces() as found:
            yield found
    except NotPermittedError as error:
        pytest.skip(f"no network namespaces here: {error}")


def names() -> set[str]:
    return set(namespaces._names())


def start(place: Namespace, *command: str) -> subprocess.Popen[str]:
    child = subprocess.Popen(place.command(*command), stdout=subprocess.PIPE, text=True)
    assert child.stdout and child.stdout.readline() == "up\n"
    return child


def test_each_reaches_the_other_and_neither_this_machine(pair: tuple[Namespace, Namespace]) -> None:
    one, two = pair
    with start(one, sys.executable, "-c", LISTEN), socket.create_server(("127.0.0.1", 0)) as here:
        line = two.command(sys.executable, "-c", CONNECT, one.address, "7000")
        assert subprocess.run(line, capture_output=True, text=True, check=True).stdout == "hi\n"
        line = two.command(sys.executable, "-c", CONNECT, "127.0.0.1", str(here.getsockname()[1]))
        refused = subprocess.run(line, capture_output=True, text=True, check=False)
        assert "refused" in refused.stderr


def test_kill_ends_the_processes_of_one_by_their_pids(pair: tuple[Namespace, Namespace]) -> None:
    one, two = pair
    with start(one, *SLEEP) as stays, start(two, *SLEEP) as first, start(two, *SLEEP) as second:
        assert sorted(two.pids()) == sorted([first.pid, second.pid])
        assert two.kill() == 2 and two.pids() == []
        assert one.pids() == [stays.pid] and stays.poll() is None
        assert one.kill() == 1


def test_an_error_leaves_neither_namespaces_nor_processes(pair: tuple[Namespace, Namespace]) -> None:
    seen: list[Namespace] = []
    children: list[subprocess.Popen[str]] = []

    def fail() -> None:
        with two_namespaces() as inner:
            seen.extend(inner)
            children.append(start(inner[1], *SLEEP))
            assert {place.name for place in inner} <= names()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not {place.name for place in seen} & names()
    assert {place.name for place in pair} <= names()
    children[0].wait(10)


OWNER = """
import sys, time
from cluster.namespaces import two_namespaces
with two_namespaces() as pair:
    print(*(place.name for place in pair), flush=True)
    time.sleep(600)
"""


def test_what_a_killed_process_left_is_removed(pair: tuple[Namespace, Namespace]) -> None:
    with subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout
        left = owner.stdout.readline().split()
        orphan = start(Namespace(name=left[0], address=""), *SLEEP)
        namespaces.remove_stale()
        assert set(left) <= names()
        owner.kill()
    end = time.monotonic() + 10
    while psutil.pid_exists(owner.pid) and time.monotonic() < end:
        time.sleep(0.02)
    assert namespaces.remove_stale() >= 2
    assert not set(left) & names() and {place.name for place in pair} <= names()
    orphan.wait(10)


def test_who_may_not_make_any_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.devnull)
    with pytest.raises(NotPermittedError, match="iproute2"), two_namespaces():
        pass
