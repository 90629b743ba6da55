"""The two processes of a cluster of this machine: a Ray head and the S3 stand-in, on free ports of the loopback."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from cluster import processes, state
from cluster.interrupts import Interrupts
from cluster.state import ClusterState

REPOSITORY = Path(__file__).resolve().parents[1]
S3_KEYS = {"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local", "AWS_REGION": "us-east-1"}
START_TIMEOUT_S = 180.0
"""For each of the two. A busy machine of two cores takes a minute for Ray; what fails says so long before this."""
_STARTED = "Ray runtime started"
"""What `ray start` prints once the head's node is registered with its CPUs; it ends where that takes too long."""
_ATTEMPTS = 3
_MIN_STORE_BYTES = 80_000_000


class StartError(RuntimeError):
    """Ray or the S3 stand-in did not come up."""


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """How large the cluster is.

    Raises:
        ValueError: a size that Ray cannot have.
    """

    num_cpus: int = 0
    """CPUs that Ray hands out, which need not be those of the machine; 0 takes the machine's, at least 2."""
    num_gpus: int = 0
    """GPUs that Ray hands out."""
    store_bytes: int = 256_000_000
    """Shared memory of Ray's object store, which table rows never pass through."""

    def __post_init__(self) -> None:
        if self.num_cpus < 0 or self.num_gpus < 0:
            raise ValueError(f"--num-cpus {self.num_cpus} --num-gpus {self.num_gpus}: neither can be negative")
        if self.store_bytes < _MIN_STORE_BYTES:
            raise ValueError(f"--store-bytes is {self.store_bytes}; Ray needs at least {_MIN_STORE_BYTES}")


def start(name: str, options: ClusterOptions, interrupts: Interrupts, *, owned: bool = False) -> ClusterState:
    """Start a cluster and return when it takes jobs; whatever stops that leaves nothing behind.

    Args:
        name: Of the state file.
        options: How large it is.
        interrupts: Where Ctrl-C is looked for.
        owned: This process ends the cluster itself, so it is stale once this process has gone.

    Raises:
        ClusterExistsError: there is one of this name.
        StartError: Ray or the S3 stand-in failed, with the end of its log.
        Interrupted: a signal came.
    """
    for attempt in range(_ATTEMPTS):
        new = _claim(name)
        try:
            return _start_once(new, options, interrupts, owned=owned)
        except StartError:  # most likely another process was faster to take one of the ports
            if attempt == _ATTEMPTS - 1 or not _is_ours(new):
                raise
        finally:
            last = state.load(name)
            if last and last.mark == new.mark and not last.ready:
                stop(last)
    raise AssertionError


def stop(cluster: ClusterState) -> int:
    """End a cluster and remove its files; returns how many processes it had. It cannot be interrupted half-way."""
    num_ended = processes.end(cluster.mark, cluster.processes)
    state.forget(cluster)
    return num_ended


def client_environment(cluster: ClusterState) -> dict[str, str]:
    """The environment of a command that uses the cluster: this process's, with the cluster's addresses and keys."""
    return {**plain_environment(), **cluster.environment, **_scratch(Path(cluster.folder))}


def _scratch(folder: Path) -> dict[str, str]:
    """Temporary files of killed processes go with the cluster's folder."""
    scratch = folder / "tmp"
    scratch.mkdir(exist_ok=True)
    return {"TMPDIR": str(scratch)}


def _claim(name: str) -> ClusterState:
    """Take the name and make the folder, in which the paths of Ray's sockets have to stay short."""
    base = "/tmp" if os.path.isdir("/tmp") else tempfile.gettempdir()  # noqa: S108 - mkdtemp makes it private
    folder = tempfile.mkdtemp(prefix="tol-", dir=base)
    owner = processes.ProcessId.of(os.getpid())
    new = ClusterState(name=name, mark=secrets.token_hex(8), folder=folder, owner=owner)
    try:
        state.claim(new)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return new


def _is_ours(new: ClusterState) -> bool:
    """Whether the state file is still the one of this start: `down` may have come in between."""
    found = state.load(new.name)
    return found is not None and found.mark == new.mark


def _start_once(new: ClusterState, options: ClusterOptions, interrupts: Interrupts, *, owned: bool) -> ClusterState:
    folder = Path(new.folder)
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    ports = _free_ports(4)
    shared = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    environment = {**plain_environment(), **shared, **_scratch(folder)}

    port_file = folder / "s3.port"
    s3_command = [sys.executable, "-m", "cluster.s3", "--port-file", str(port_file)]
    new = _spawn(new, s3_command, environment, folder / "s3.log")
    ray_environment = {**environment, "RAY_worker_niceness": "0"}  # 15 unless told: behind every other process here
    new = _spawn(new, _ray_command(folder, ports, options), ray_environment, folder / "ray.log")
    _wait(new, lambda: port_file.exists(), "the S3 stand-in", folder / "s3.log", interrupts)
    url = f"http://127.0.0.1:{ports[1]}"
    ray_log = folder / "ray.log"
    _wait(new, lambda: has_node(ray_log) and _takes_jobs(url, token.read_text()), "Ray", ray_log, interrupts)

    s3_url = f"http://127.0.0.1:{port_file.read_text()}"
    address = f"127.0.0.1:{ports[0]}"
    exports = {
        "RAY_ADDRESS": address,
        "RAY_API_SERVER_ADDRESS": url,
        **shared,
        "AWS_ENDPOINT_URL": s3_url,
        **S3_KEYS,
    }
    new = replace(new, ready=True, address=address, dashboard_url=url, s3_url=s3_url, environment=exports)
    new = new if owned else replace(new, owner=None)
    state.save(new)
    return new


def _ray_command(folder: Path, ports: tuple[int, ...], options: ClusterOptions) -> list[str]:
    port, dashboard, agent, grpc = ports
    return [
        str(Path(sys.executable).with_name("ray")),
        "start",
        "--head",
        "--block",
        "--node-ip-address=127.0.0.1",
        f"--port={port}",
        "--include-dashboard=true",
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={dashboard}",
        f"--dashboard-agent-listen-port={agent}",
        f"--dashboard-agent-grpc-port={grpc}",
        f"--num-cpus={options.num_cpus or max(2, os.cpu_count() or 1)}",
        f"--num-gpus={options.num_gpus}",
        f"--object-store-memory={options.store_bytes}",
        f"--temp-dir={folder}",
        "--disable-usage-stats",
    ]


def _spawn(new: ClusterState, command: list[str], environment: Mapping[str, str], log: Path) -> ClusterState:
    """Start a process and record it; one that is started and not yet recorded carries the mark."""
    if not _is_ours(new):
        raise StartError("another command ended this cluster while it was starting")
    child = processes.spawn(command, mark=new.mark, environment=environment, log=log, folder=REPOSITORY)
    new = replace(new, processes=(*new.processes, processes.ProcessId.of(child.pid)))
    state.save(new)
    return new


def _wait(new: ClusterState, ready: Callable[[], bool], what: str, log: Path, interrupts: Interrupts) -> None:
    dead = False

    def done() -> bool:
        nonlocal dead
        dead = not all(process.find() for process in new.processes)
        return dead or ready()

    in_time = interrupts.wait(done, timeout_s=START_TIMEOUT_S)
    if dead or not in_time:
        fault = "ended" if dead else f"was not ready after {START_TIMEOUT_S:.0f} s"
        raise StartError(f"{what} {fault}; the end of its log:\n{tail(log)}")


def has_node(ray_log: Path) -> bool:
    """Whether the head has a live node, by the log of its `ray start --block`: jobs are taken before that."""
    return ray_log.exists() and _STARTED in ray_log.read_text(errors="replace")


def _takes_jobs(url: str, token: str) -> bool:
    headers = {"Authorization": f"Bearer {token}"}
    request = urllib.request.Request(f"{url}/api/jobs/", headers=headers)  # noqa: S310 - the URL is ours
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(request, timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _free_ports(count: int) -> tuple[int, ...]:
    """Ports of the loopback that nobody has now, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return tuple(int(one.getsockname()[1]) for one in sockets)


def plain_environment(*direct_hosts: str) -> dict[str, str]:
    """This process's environment: this Python's folder first, nothing that points Ray or S3 clients elsewhere.

    Args:
        direct_hosts: reached without a proxy, besides this machine.
    """
    drop = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_TMPDIR", "AWS_PROFILE", "AWS_SESSION_TOKEN", processes.MARK)
    environment = {key: value for key, value in os.environ.items() if key not in drop}
    known = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    direct = ",".join([*filter(None, [known]), "127.0.0.1", "localhost", *direct_hosts])
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {**environment, "NO_PROXY": direct, "no_proxy": direct, "PATH": path}


def tail(log: Path, lines: int = 15) -> str:
    """The last lines of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else "(none)"
