"""The bench's lab of network namespaces: cables of given rates, nodes that are reached by each, nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from cluster import namespaces, netlab
from cluster.links import RATES
from cluster.namespaces import NotPermittedError
from cluster.netlab import Lab, open_lab

REPOSITORY = Path(__file__).parents[2]
FETCH = """
import json, sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tolserve.bench.cost.calibrate import bare_socket, reached
from tolserve.bench.cost.material import Materials
from tolserve.bench.cost.nodes import Fleet
from tolserve.bench.cost.places import Asked
from tolserve.bench.cost.point import base
node, links, port = sys.argv[1:]
host, _, own = node.partition(":")
links = json.loads(links)
fleet = Fleet(None, [(host, int(own))], links)
for name in links:
    point = replace(base("paced"), codes="256-int4", link=name)
    asked = Asked(point=point, material=Materials(Path()).get(point), fleet=fleet)
    print(name, json.dumps(reached(asked)), json.dumps(bare_socket((links[name], int(port)))))
"""


def names() -> set[str]:
    return {name for name in namespaces._names() if name.startswith(f"tol-{os.getpid()}-")}


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    monkeypatch.setattr(netlab, "own_cores", lambda: (None, None))
    monkeypatch.setattr(netlab, "NODE_BYTES", 8 << 20)
    with ExitStack() as stack:
        try:
            yield open_lab(stack, codes=("256-int4",))
        except NotPermittedError as error:
            pytest.skip(f"no lab here: {error}")
    assert names() == set()


@pytest.mark.slow
def test_rows_and_bare_sockets_pass_every_cable_at_its_rate(lab: Lab) -> None:
    command = lab.client.command(sys.executable, "-c", FETCH, lab.nodes[0], json.dumps(lab.links), str(lab.socket_port))
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(RATES)
    shaped = subprocess.run(["tc", "-n", lab.client.name, "qdisc"], capture_output=True, text=True, check=True).stdout
    assert shaped.count("tbf") == 3 and "rate 1Gbit" in shaped and "rate 2500Mbit" in shaped


@pytest.mark.slow
def test_a_signal_ends_bench_nodes_and_namespaces(tmp_path: Path) -> None:
    out = tmp_path / "cost.json"
    options = ["bench", "cost", "--only", "link", "--out", str(out), "--work", str(tmp_path)]
    command = [sys.executable, "-m", "cluster.netlab", *options]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as runner:
        assert runner.stdout and runner.stderr
        line = runner.stdout.readline()
        if not line and runner.wait() == 2:
            pytest.skip(f"no lab here: {runner.stderr.read()}")
        assert line.startswith("result:"), line
        own = {name for name in namespaces._names() if name.startswith(f"tol-{runner.pid}-")}
        assert len(own) == 2
        runner.send_signal(signal.SIGTERM)
        assert runner.wait(60) == 128 + signal.SIGTERM
    assert not own & set(namespaces._names())
    end = time.monotonic() + 30
    while _mention(str(out)) and time.monotonic() < end:
        time.sleep(0.1)
    assert _mention(str(out)) == []


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", os.devnull)
    assert netlab.main(["bench", "cost"]) == 2
    assert "iproute2" in capsys.readouterr().err


def _mention(text: str) -> list[str]:
    """Pids of processes whose command line has `text`, this one left out."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if text in line:
                found.append(entry.name)
    return found
