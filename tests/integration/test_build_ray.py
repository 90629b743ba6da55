"""Builds on a real Ray head, with an S3 stand-in: workers and drivers killed, GPUs claimed, a job submitted."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from build_kit import (
    REPOSITORY,
    S3_KEYS,
    RayHead,
    contents,
    finish,
    make_checkpoint,
    ray_head,
    receipts,
    run_build,
    start_build,
    worker_pids,
)
from moto.server import ThreadedMotoServer

OPTIONS = ("--rank", "24", "--codes", "int8", "--layers-per-band", "1", "--shard-rows", "128", "--device", "cpu")
"""39 cells of a 1000-token, 3-layer model: 12 sums, 3 fits, 24 shards."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "model")


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayHead]:
    with ray_head(tmp_path_factory.mktemp("ray"), num_cpus=4, num_gpus=2) as found:
        yield found


@pytest.fixture(scope="module")
def reference(checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What one worker in one process writes."""
    table = tmp_path_factory.mktemp("reference") / "table"
    done = run_build("--checkpoint", checkpoint, "--table", str(table), *OPTIONS, "--no-ray", "--workers", "1")
    assert done.returncode == 0, done.stderr
    return contents(table)


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    """Environment of a client of an S3 stand-in with the bucket `tables`."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    environment = {**S3_KEYS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.get_host_and_port()[1]}"}
    boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        aws_access_key_id="testing",
        aws_secret_access_key="testing",
        region_name="us-east-1",
    ).create_bucket(Bucket="tables")
    yield environment
    server.stop()


def wait_for_receipts(table: Path, count: int, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 90
    while len(receipts(table)) < count and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.002)


@pytest.mark.parametrize("workers", ["1", "4"])
def test_ray_workers_write_the_same_bytes(
    head: RayHead, checkpoint: str, reference: dict[str, str], tmp_path: Path, workers: str
) -> None:
    line = ("--checkpoint", checkpoint, "--table", str(tmp_path / "table"), *OPTIONS, "--workers", workers)
    done = run_build(*line, environment=head.environment)
    assert done.returncode == 0, done.stderr
    assert "codes 24/24" in done.stderr and "times smaller" in done.stdout
    assert contents(tmp_path / "table") == reference
    again = run_build(*line, environment=head.environment)
    assert again.returncode == 0 and "already complete" in again.stdout
    assert contents(tmp_path / "table") == reference


def test_killed_workers_are_replaced(head: RayHead, checkpoint: str, reference: dict[str, str], tmp_path: Path) -> None:
    table, chance = tmp_path / "table", random.Random(0)
    line = ("--checkpoint", checkpoint, "--table", str(table), *OPTIONS, "--workers", "2")
    with start_build(*line, environment=head.environment) as process:
        for count in sorted(chance.sample(range(1, 16), 2)):
            wait_for_receipts(table, count, process)
            os.kill(chance.choice(worker_pids(head)), signal.SIGKILL)
        out, err = finish(process)
    assert process.returncode == 0, err
    assert "was lost" in err and "version 1" in out
    assert contents(table) == reference


@pytest.mark.parametrize("no_ray", [True, False], ids=["threads", "ray"])
def test_a_killed_driver_is_resumed(
    head: RayHead, checkpoint: str, reference: dict[str, str], tmp_path: Path, no_ray: bool
) -> None:
    table, spool, chance = tmp_path / "table", tmp_path / "spool", random.Random(int(no_ray))
    line = ["--checkpoint", checkpoint, "--table", str(table), *OPTIONS, "--workers", "2", "--spool-dir", str(spool)]
    line += ["--no-ray"] if no_ray else []
    for count in sorted(chance.sample(range(1, 20), 2)):
        with start_build(*line, environment=head.environment) as process:
            wait_for_receipts(table, count, process)
            process.kill()
        before = {path: path.stat().st_mtime_ns for path in receipts(table)}
    done = run_build(*line, environment=head.environment)
    assert done.returncode == 0, done.stderr
    assert "resuming" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert contents(table) == reference
    wait_until_empty(spool)


def test_ranks_by_a_budget_survive_a_killed_driver(head: RayHead, checkpoint: str, tmp_path: Path) -> None:
    """Token counts and layer weights go to the workers through the store; one process makes the same bytes."""
    (tmp_path / "counts.json").write_text(json.dumps([1000 / (1 + token) for token in range(1000)]))
    (tmp_path / "layers.json").write_text("[0.001, 1, 0.001]")
    line = ["--checkpoint", checkpoint, *OPTIONS, "--rank", "bytes:150kB", "--layers-per-band", "3", "--workers", "2"]
    line += ["--weights", f"counts:{tmp_path / 'counts.json'}", "--layer-weights", str(tmp_path / "layers.json")]
    table = tmp_path / "table"
    with start_build(*line, "--table", str(table), environment=head.environment) as process:
        wait_for_receipts(table, 2, process)
        process.kill()
    done = run_build(*line, "--table", str(table), environment=head.environment)
    assert done.returncode == 0, done.stderr
    assert "resuming" in done.stderr
    alone = run_build(*line, "--table", str(tmp_path / "alone"), "--no-ray")
    assert alone.returncode == 0, alone.stderr
    made = {key: digest for key, digest in contents(table).items() if not key.startswith("_build/tmp/")}
    assert made == contents(tmp_path / "alone")
    layers = json.loads((table / "manifests/00000001.json").read_text())["body"]["layer_stats"]
    assert layers[1]["rank"] == 64 and max(layers[0]["rank"], layers[2]["rank"]) < 64


def wait_until_empty(spool: Path) -> None:
    """Ray ends a killed driver's workers on its own time; the next build removes what they spooled."""
    end = time.monotonic() + 30
    while any(spool.iterdir()) and time.monotonic() < end:
        time.sleep(0.1)
    assert list(spool.iterdir()) == []


@pytest.fixture(scope="module")
def long_build(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, str]]:
    """A checkpoint whose build cannot end between a receipt and a signal, and what it comes to."""
    folder = tmp_path_factory.mktemp("long")
    checkpoint, table = make_checkpoint(folder / "model", vocab_size=6000), folder / "table"
    done = run_build("--checkpoint", checkpoint, "--table", str(table), *OPTIONS, "--no-ray")
    assert done.returncode == 0, done.stderr
    return checkpoint, contents(table)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["int", "term"])
@pytest.mark.parametrize("no_ray", [True, False], ids=["threads", "ray"])
def test_an_interrupted_build_is_tidy_and_resumable(
    head: RayHead, long_build: tuple[str, dict[str, str]], tmp_path: Path, number: int, code: int, no_ray: bool
) -> None:
    table, spool = tmp_path / "table", tmp_path / "spool"
    line = ["--checkpoint", long_build[0], "--table", str(table), *OPTIONS, "--workers", "2", "--spool-dir", str(spool)]
    line += ["--no-ray"] if no_ray else []
    with start_build(*line, environment=head.environment) as process:
        wait_for_receipts(table, 1, process)
        process.send_signal(number)
        _, err = finish(process)
    assert process.returncode == code, err
    assert "the same command goes on" in err and "Traceback" not in err
    assert not no_ray or list(spool.iterdir()) == []
    assert not list(table.glob("manifests/*"))
    done = run_build(*line, environment=head.environment)
    assert done.returncode == 0 and "resuming" in done.stderr
    assert contents(table) == long_build[1]
    wait_until_empty(spool)


def submitted(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """A job's submission, again while the head says that it is not ready for jobs yet, as on a busy machine."""
    deadline = time.monotonic() + 90
    while True:
        done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=150)
        if "No available agent" not in done.stderr + done.stdout or time.monotonic() > deadline:
            return done
        time.sleep(1.0)


def test_a_submitted_job_builds_on_s3(
    head: RayHead, checkpoint: str, reference: dict[str, str], s3: dict[str, str], tmp_path: Path
) -> None:
    """The README's command: a plain head, the credentials in the job's runtime environment and nowhere else. The bytes
    are those that one worker writes on a disk.
    """
    client = boto3.client("s3", **_client_options(s3))
    for path in Path(checkpoint).iterdir():
        client.upload_file(str(path), "tables", f"model/{path.name}")
    command = [
        str(Path(sys.executable).with_name("ray")),
        "job",
        "submit",
        "--working-dir",
        ".",
        "--runtime-env-json",
        json.dumps({"env_vars": s3}),
        "--",
        sys.executable,
        "-m",
        "tolbuild.run",
        "--checkpoint",
        "s3://tables/model",
        "--table",
        "s3://tables/built/here",
        *OPTIONS,
    ]
    environment = {**os.environ, **head.environment, "RAY_ADDRESS": head.dashboard}
    for name in s3:
        environment.pop(name, None)
    done = submitted(command, environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "s3://tables/built/here  version 1" in done.stdout
    keys = [item["Key"] for item in client.list_objects_v2(Bucket="tables", Prefix="built/")["Contents"]]
    assert "built/here/manifests/00000001.json" in keys
    assert not [key for key in keys if "_build" in key]
    for key in keys:
        path = tmp_path / key
        path.parent.mkdir(parents=True, exist_ok=True)
        client.download_file("tables", key, str(path))
    assert contents(tmp_path / "built/here") == reference


def test_what_s3_refuses_is_named(checkpoint: str, s3: dict[str, str]) -> None:
    line = ("--checkpoint", checkpoint, "--no-ray", "--shard-rows", "1024")
    missing = run_build(*line, "--table", "s3://no-such-bucket/x", environment=s3)
    assert missing.returncode == 1 and "no such bucket" in missing.stderr and "Traceback" not in missing.stderr
    nobody = {**s3, "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    unreachable = run_build(*line, "--table", "s3://tables/x", environment=nobody)
    assert unreachable.returncode == 1 and "127.0.0.1:9" in unreachable.stderr


def test_no_cluster_says_how_to_get_one(checkpoint: str, tmp_path: Path) -> None:
    line = ("--checkpoint", checkpoint, "--table", str(tmp_path / "table"))
    done = run_build(*line, environment={"RAY_ADDRESS": "127.0.0.1:9"})
    assert done.returncode == 1, done.stdout
    for part in ("no Ray cluster", "127.0.0.1:9", "--no-ray", "ray start --head"):
        assert part in done.stderr


def _client_options(environment: dict[str, str]) -> dict[str, str]:
    return {
        "endpoint_url": environment["AWS_ENDPOINT_URL"],
        "aws_access_key_id": environment["AWS_ACCESS_KEY_ID"],
        "aws_secret_access_key": environment["AWS_SECRET_ACCESS_KEY"],
        "region_name": "us-east-1",
    }
