"""What the workers of a build claim of a Ray cluster, and what it says while they get nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from build_kit import RayHead, finish, make_checkpoint, ray_head, run_build, start_build

OPTIONS = ("--rank", "24", "--codes", "int8", "--layers-per-band", "1", "--shard-rows", "128", "--device", "cpu")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "model")


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayHead]:
    with ray_head(tmp_path_factory.mktemp("ray"), num_cpus=4, num_gpus=2) as found:
        yield found


HOG = """
import sys
import ray
ray.init(address="auto", log_to_driver=False, configure_logging=False)
@ray.remote(num_cpus=4)
class Hog:
    def ready(self): return True
hog = Hog.remote()
print(ray.get(hog.ready.remote()), flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_a_build_without_a_free_cpu_says_what_it_waits_for(head: RayHead, checkpoint: str, tmp_path: Path) -> None:
    line = ("--checkpoint", checkpoint, "--table", str(tmp_path / "table"), *OPTIONS, "--workers", "2")
    with subprocess.Popen(
        [sys.executable, "-c", HOG],
        env=os.environ | head.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as hog:
        assert hog.stdout and hog.stdin and hog.stdout.readline() == "True\n"
        with start_build(*line, environment=head.environment) as build:
            assert build.stderr
            said = build.stderr.readline()
            hog.stdin.close()
            _, err = finish(build)
    assert "no worker is ready after 1" in said, said
    assert "2 workers wanted with a CPU each; of the cluster's 4 CPUs 0 are free" in said
    assert build.returncode == 0, err


WATCHER = """
import select, sys
import ray
ray.init(address="auto", log_to_driver=False, configure_logging=False)
total = least = ray.available_resources()["GPU"]
print("watching", flush=True)
while not select.select([sys.stdin], [], [], 0.01)[0]:
    least = min(least, ray.available_resources().get("GPU", 0.0))
print(total, least)
"""


def test_workers_claim_gpus_where_the_cluster_has_any(head: RayHead, checkpoint: str, tmp_path: Path) -> None:
    """The GPUs are logical: what is claimed is seen by Ray, and the workers find no device and use the CPU."""
    line = ("--checkpoint", checkpoint, "--table", str(tmp_path / "table"), "--shard-rows", "64")
    with subprocess.Popen(
        [sys.executable, "-c", WATCHER],
        env=os.environ | head.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as watcher:
        assert watcher.stdout and watcher.stdout.readline() == "watching\n"
        done = run_build(*line, environment=head.environment)
        seen, _ = finish(watcher)
    assert done.returncode == 0, done.stderr
    assert seen.split() == ["2.0", "0.0"]
