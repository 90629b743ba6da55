"""The benches of serving from end to end at their smallest; no figure is asserted, only that all are there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tolserve.bench.page import SERVING, figures

REPOSITORY = Path(__file__).parents[2]
FIGURES = {
    "rows": [key for key in SERVING if key.startswith(("tcp", "client", "paced", "node"))],
    "engine": [key for key in SERVING if key.startswith(("engine", "gateway"))],
    "gpu": [],
}


def run(bench: str, out: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "tolserve.bench", bench, "--quick", "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert ended.returncode == 0, ended.stderr
    result: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    assert json.loads(out.read_text()) == result
    return result


@pytest.mark.slow
@pytest.mark.parametrize("bench", FIGURES)
def test_the_last_line_is_one_json_object_with_every_figure(bench: str, tmp_path: Path) -> None:
    result = run(bench, tmp_path / "result.json")
    assert [one.key for one in figures(result, SERVING)] == FIGURES[bench]
    assert result["quick"] and {"machine", "versions", "seed", "command"} <= set(result)
    if bench == "gpu":
        assert set(result["gpu"]["b1"]) == {
            "base", "memory, rows on the device", "memory, rows in host memory", "memory, rows over TCP",
        }  # fmt: skip
