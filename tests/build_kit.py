"""What tests of whole builds share: a small random checkpoint, a Ray head, an S3 stand-in, and the bytes of a table."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from tolbuild.build_config import BuildConfig
from tolbuild.checkpoint import open_checkpoint, save_checkpoint
from tolbuild.config import ModelConfig
from tolbuild.model import MemoryLLM

REPOSITORY = Path(__file__).parents[1]

S3_KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}


def make_checkpoint(path: Path, *, seed: int = 0, **changes: object) -> str:
    """A random checkpoint with rows of a few large components: V 1000 (nothing divides it well), d 64, 3 layers."""
    shape = {
        "kind": "memory",
        "vocab_size": 1000,
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "initializer_range": 0.3,
        **changes,
    }
    config = ModelConfig(**shape)  # type: ignore[arg-type]
    model = MemoryLLM(config)
    model.reset_parameters(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("memory_layernorm.bias"):
                parameter.uniform_(-0.5, 0.5, generator=torch.Generator().manual_seed(seed))
    save_checkpoint(path, config, model.state_dict())
    return str(path)


def build_config(checkpoint: str, folder: Path, **changes: object) -> BuildConfig:
    """A low-rank build of a `make_checkpoint` in this process: two workers, several shards and bands, in `folder`."""
    config = BuildConfig(
        checkpoint=checkpoint,
        table=str(folder / "table"),
        rank=24,
        codes="int8",
        layers_per_band=2,
        shard_rows=256,
        workers=2,
        no_ray=True,
        device="cpu",
        spool_dir=folder / "spool",
    )
    return replace(config, **changes)  # type: ignore[arg-type]


def edited_checkpoint(checkpoint: str, path: Path, edit: Callable[[str, torch.Tensor], None]) -> str:
    """A copy whose tensors `edit` has changed in place, by name."""
    opened = open_checkpoint(checkpoint)
    state = {name: opened.tensor(name).clone() for name in opened.names}
    for name, tensor in state.items():
        edit(name, tensor)
    save_checkpoint(path, opened.config, state)
    return str(path)


@dataclass(frozen=True)
class RayHead:
    """A cluster that `ray start --head` made; `environment` is what a client of it sets."""

    address: str
    dashboard: str
    temp: Path
    environment: Mapping[str, str]


def free_port() -> int:
    """A TCP port of the loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def ray_head(
    temp: Path,
    *,
    num_cpus: int,
    num_gpus: int = 0,
    resources: Mapping[str, float] | None = None,
    cwd: Path | None = None,
) -> Iterator[RayHead]:
    """A head with a dashboard (jobs need it) on free ports, started in `cwd`, ended with all that it started."""
    token = temp / "token"
    temp.mkdir(parents=True, exist_ok=True)
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    port, dashboard = free_port(), free_port()
    command = [
        str(Path(sys.executable).with_name("ray")),
        "start",
        "--head",
        "--block",
        "--node-ip-address=127.0.0.1",
        f"--port={port}",
        f"--dashboard-port={dashboard}",
        f"--ray-client-server-port={free_port()}",
        f"--num-cpus={num_cpus}",
        f"--num-gpus={num_gpus}",
        f"--resources={json.dumps(dict(resources or {}))}",
        "--object-store-memory=100000000",
        f"--temp-dir={temp}",
        "--disable-usage-stats",
    ]
    shared = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    as_nice_as_we_are = {"RAY_worker_niceness": "0"}
    with (temp / "head.log").open("wb") as log:
        head = subprocess.Popen(
            command,
            env=os.environ | shared | as_nice_as_we_are,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd=cwd,
        )
    address = f"127.0.0.1:{port}"
    try:
        wait_for(lambda: "Ray runtime started" in (temp / "head.log").read_text(), head, temp / "head.log")
        environment = {**shared, "RAY_ADDRESS": address}
        yield RayHead(address, f"http://127.0.0.1:{dashboard}", temp, environment)
    finally:
        children = descendants(head.pid)
        head.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            head.wait(15)
        for pid in [head.pid, *children]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        head.wait()


def wait_for(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, timeout_s: float = 60) -> None:
    """Wait until `ready`, or fail with the log when the process ends or the time is up."""
    end = time.monotonic() + timeout_s
    while not ready():
        assert process.poll() is None and time.monotonic() < end, log.read_text()
        time.sleep(0.05)


def descendants(pid: int) -> list[int]:
    """Processes below a process, as they stand now."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                stat = (entry / "stat").read_text()
                parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    found, front = [], [pid]
    while front:
        front = [child for child, parent in parents.items() if parent in front]
        found += front
    return found


def worker_pids(head: RayHead) -> list[int]:
    """Processes of this head's build workers."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                line = (entry / "cmdline").read_bytes()
                if line.startswith(b"ray::WorkerActor") and str(head.temp).encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
    return found


def run_build(*options: str, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """`python -m tolbuild.run` in a process of its own, from the repository."""
    with start_build(*options, environment=environment) as process:
        out, err = finish(process)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def finish(process: subprocess.Popen[str], timeout_s: float = 120) -> tuple[str, str]:
    """Wait for a build's end and its output; one that does not end is killed, and that is a failure."""
    try:
        return process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        raise


def start_build(*options: str, environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """The same, still running."""
    return subprocess.Popen(
        [sys.executable, "-m", "tolbuild.run", *options],
        cwd=REPOSITORY,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def contents(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a table by key; the manifest without what names a single run (write id, time)."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        data = path.read_bytes()
        key = path.relative_to(folder).as_posix()
        found[key] = hashlib.sha256(strip_run(data) if key.startswith("manifests/") else data).hexdigest()
    return found


def strip_run(manifest: bytes) -> bytes:
    """A manifest without write id, time and the checksum over them."""
    return re.sub(rb'"(write_id|created|checksum|body_sha256)":\s*"[^"]*",?', b"", manifest)


def receipts(folder: Path) -> list[Path]:
    """The receipts that stand in a table now."""
    return sorted(p for p in (folder / "receipts").rglob("*") if p.is_file())


def arguments(options: Mapping[str, object]) -> Sequence[str]:
    """Options as a command line: {"rank": 8, "no_ray": True} -> --rank 8 --no-ray."""
    line: list[str] = []
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        values = value if isinstance(value, tuple) else () if value is True else (value,)
        line += [flag, *map(str, values)]
    return line
