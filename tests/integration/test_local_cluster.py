"""`python -m cluster.local` and the demo, in a state folder of their own: exactly what they start ends with them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import psutil
import pytest

from cluster.processes import MARK

REPOSITORY = Path(__file__).parents[2]
TIMEOUT_S = 300


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Own state and temporary folders; whatever carries a cluster's mark and this state folder ends with the test."""
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    own = {"XDG_STATE_HOME": str(tmp_path / "state"), "TMPDIR": str(scratch)}
    yield os.environ | own
    for process in marked(own):
        process.kill()


def marked(environment: dict[str, str]) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            values = process.environ()
        except psutil.Error:
            continue
        if MARK in values and values.get("XDG_STATE_HOME") == environment["XDG_STATE_HOME"]:
            found.append(process)
    return found


def local(command: str, environment: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cluster.local", command, *options],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )


def exported(lines: str) -> dict[str, str]:
    """What a shell has after `eval` of the lines."""
    shell = subprocess.run(["bash", "-c", f"{lines}\nenv -0"], env={}, capture_output=True, text=True, check=True)
    return dict(entry.split("=", 1) for entry in shell.stdout.split("\0") if "=" in entry)


def nodes(values: dict[str, str]) -> list[dict[str, Any]]:
    """The cluster's nodes as its dashboard tells them, to whoever has its token."""
    token = Path(values["RAY_AUTH_TOKEN_PATH"]).read_text()
    url = f"{values['RAY_API_SERVER_ADDRESS']}/nodes?view=summary"
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as answer:
        return [node["raylet"] for node in json.load(answer)["data"]["summary"]]


@pytest.mark.slow
def test_up_status_down(environment: dict[str, str]) -> None:
    assert local("status", environment).returncode == 3
    up = local("up", environment)
    assert up.returncode == 0, up.stderr
    values = exported(up.stdout)
    assert [node["state"] for node in nodes(values)] == ["ALIVE"]
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(values["AWS_ENDPOINT_URL"], timeout=30) as answer:
        assert answer.status == 200
    boto3.client(
        "s3",
        endpoint_url=values["AWS_ENDPOINT_URL"],
        aws_access_key_id=values["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=values["AWS_SECRET_ACCESS_KEY"],
        region_name=values["AWS_REGION"],
    ).create_bucket(Bucket="mine")
    state = local("status", environment)
    assert state.returncode == 0 and values["RAY_ADDRESS"].removeprefix("http://") in state.stdout
    assert local("up", environment).stdout == up.stdout
    down = local("down", environment)
    assert down.returncode == 0 and "ended" in down.stderr
    assert not marked(environment)
    assert not list(Path(environment["TMPDIR"]).iterdir())
    assert local("status", environment).returncode == 3


@pytest.mark.slow
@pytest.mark.parametrize("step", ["[1/7]", "[3/7]"])
def test_ctrl_c_ends_the_demo_and_all_that_it_started(environment: dict[str, str], step: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "cluster.demo"],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as demo:
        assert demo.stdout
        assert any(line.startswith(step) for line in demo.stdout)
        demo.send_signal(signal.SIGINT)
        said, err = demo.communicate(timeout=TIMEOUT_S)
    assert demo.returncode == 130, err
    assert "nothing is left running" in said
    assert not marked(environment)
    assert not list(Path(environment["TMPDIR"]).iterdir())
