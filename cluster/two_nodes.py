"""A Ray cluster over two network namespaces of this machine: head and S3 stand-in in one, a worker node in the other.

What passes between the nodes passes the cable, as between two machines; only the disk is one.
"""

from __future__ import annotations

import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cluster import processes
from cluster.head import REPOSITORY, S3_KEYS, START_TIMEOUT_S, StartError, plain_environment, tail
from cluster.namespaces import Namespace, two_namespaces

_PORT = 6379
_STORE_BYTES = 80_000_000
"""Ray's least for its object store, which table rows never pass through."""

_NOTICE = {"RAY_health_check_period_ms": "500", "RAY_health_check_failure_threshold": "4"}
"""A dead node is noticed after 2 s; Ray's own values take a quarter of a minute."""


@dataclass(frozen=True, kw_only=True)
class TwoNodes:
    """A running cluster. `environment` is what a command in the head's namespace needs to use it, and s3://."""

    head: Namespace
    worker: Namespace
    environment: dict[str, str]
    mark: str

    def start(self, *command: str, log: Path | None = None) -> subprocess.Popen[bytes]:
        """Start `python` or `ray` of this environment, with its arguments, in the head's namespace.

        Args:
            log: file that takes what it prints; None prints it here.
        """
        return _spawn(self.head, command, self.environment, self.mark, log)


@contextmanager
def two_nodes(*, head_cpus: int = 1, worker_cpus: int = 1) -> Iterator[TwoNodes]:
    """A cluster of two nodes with the CPUs that Ray hands out on each; everything is gone at the end.

    Raises:
        NotPermittedError: this process may not make network namespaces.
        StartError: Ray or the S3 stand-in did not come up, with the end of its log.
    """
    mark = secrets.token_hex(8)
    with tempfile.TemporaryDirectory(prefix="tol-", ignore_cleanup_errors=True) as name, two_namespaces() as (one, two):
        folder = Path(name)
        token = folder / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        environment = {
            **plain_environment(one.address, two.address),
            **_NOTICE,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
        }
        try:
            started = _start(one, two, environment, mark, folder, (head_cpus, worker_cpus))
            yield TwoNodes(head=one, worker=two, environment=started, mark=mark)
        finally:
            processes.end(mark, grace_s=0.0)


def _start(
    one: Namespace, two: Namespace, environment: dict[str, str], mark: str, folder: Path, num_cpus: tuple[int, int]
) -> dict[str, str]:
    """Start the three processes one after another; returns the environment with their addresses."""
    port_file = folder / "s3.port"
    store = ("python", "-m", "cluster.s3", "--host", one.address, "--port-file", str(port_file))
    s3 = _spawn(one, store, environment, mark, folder / "s3.log")
    address = f"{one.address}:{_PORT}"
    head = ("--head", f"--port={_PORT}", "--include-dashboard=false")
    for place, role, options, cpus in ((one, "head", head, num_cpus[0]), (two, "node", _joins(address), num_cpus[1])):
        log = folder / f"{role}.log"
        child = _spawn(place, _ray(place, folder / role, options, cpus), environment, mark, log)
        _wait(partial(_is_up, log), child, f"the Ray {role}", log)
    _wait(port_file.exists, s3, "the S3 stand-in", folder / "s3.log")
    s3_url = f"http://{one.address}:{port_file.read_text()}"
    return {**environment, "RAY_ADDRESS": address, "AWS_ENDPOINT_URL": s3_url, **S3_KEYS}


def _is_up(log: Path) -> bool:
    return "Ray runtime started" in log.read_text(errors="replace")


def _joins(address: str) -> tuple[str, ...]:
    return (f"--address={address}",)


def _ray(place: Namespace, folder: Path, options: Sequence[str], num_cpus: int) -> tuple[str, ...]:
    return (
        "ray",
        "start",
        *options,
        "--block",
        f"--node-ip-address={place.address}",
        f"--num-cpus={num_cpus}",
        "--num-gpus=0",
        f"--object-store-memory={_STORE_BYTES}",
        f"--temp-dir={folder}",
        "--disable-usage-stats",
    )


def _spawn(
    place: Namespace, command: Sequence[str], environment: dict[str, str], mark: str, log: Path | None
) -> subprocess.Popen[bytes]:
    program = str(Path(sys.executable).with_name(command[0]))
    words = place.command(program, *command[1:])
    return processes.spawn(words, mark=mark, environment=environment, log=log, folder=REPOSITORY)


def _wait(ready: Callable[[], bool], child: subprocess.Popen[bytes], what: str, log: Path) -> None:
    end = time.monotonic() + START_TIMEOUT_S
    while not ready():
        if child.poll() is not None or time.monotonic() > end:
            fault = f"was not ready after {START_TIMEOUT_S:.0f} s" if child.poll() is None else "ended"
            raise StartError(f"{what} {fault}; the end of its log:\n{tail(log)}")
        time.sleep(0.05)
