"""`python -m tolbuild.bench` from end to end at its smallest; no figure is asserted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tolbuild.bench.__main__ import ASKED


@pytest.mark.slow
def test_the_last_line_is_one_json_object_with_every_key(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    options = ["--quick", "--only", "rows", "reads", "writes", "--out", str(out), "--folder", str(tmp_path)]
    ended = subprocess.run([sys.executable, "-m", "tolbuild.bench", *options], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    results = json.loads(ended.stdout.splitlines()[-1])
    assert list(results) == list(ASKED)
    measured = {"rows_gemm_fraction", "row_read_vs_preadv", "row_read_cold_vs_preadv", "write_vs_raw"}
    assert {key for key, value in results.items() if value is not None} == measured
    written = json.loads(out.read_text())
    assert written["results"] == results
    assert {"machine", "versions", "seed", "command"} <= set(written)
    assert [path for path in tmp_path.iterdir() if path != out] == []
