"""The pages show the committed results: figures by key, bars, machine and command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tolserve.bench.page import OTHERS, PAGES, RESULTS, Figure, figures, render, rewritten, updated

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
REPOSITORY = Path(__file__).parents[2]
ABOUT = {
    "machine": {"cpu": "some", "cores": 2, "memory_bytes": 2**34, "device": "cpu", "kernel": "Linux 6"},
    "versions": {"torch": "2.13.0"},
    "seed": 0,
}


def result(**fields: Any) -> dict[str, Any]:
    return {"quick": False, "command": "python -m tolserve.bench rows", **ABOUT, **fields}


def test_nested_and_plain_keys_are_found_and_held_against_their_bars() -> None:
    asked = {"a.b": "at most 0.02", "c": "at least 1.5", "absent": "below 1e-6"}
    found = figures(result(a={"b": 0.03}, c=1.5), asked)
    assert [(one.key, one.value, one.is_met) for one in found] == [("a.b", 0.03, False), ("c", 1.5, True)]
    assert Figure(key="x", value=2e-7, asked="below 1e-6").is_met


def test_a_quick_run_is_no_result(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps(result(tcp_vs_socket_96k=1.2) | {"quick": True}))
    with pytest.raises(ValueError, match="--quick"):
        render(tmp_path)


def test_only_what_stands_between_the_marks_changes() -> None:
    page = f"words\n{BEGIN}\nold\n{END}\nmore\n"
    assert updated(updated(page, "one"), "two") == f"words\n{BEGIN}\n\ntwo\n\n{END}\nmore\n"
    with pytest.raises(ValueError, match="figures: begin"):
        updated("words", "one")


def test_other_libraries_stand_beside_ours_with_their_mode_or_the_reason(tmp_path: Path) -> None:
    rows = {"warm_ms": {"ours": 0.5, "lance": None}, "cold_ms": {"ours": 2.25, "lance": None}}
    rows |= {"warm_modes": {"ours": "preadv"}, "missing": {"lance": "no pylance"}}
    svd = {"seconds": {"ours": 1.5}, "modes": {"ours": "Gram"}, "max_rel_error": {"ours": 3e-10}, "missing": {}}
    (tmp_path / "rivals.json").write_text(json.dumps(result(results={"rows": rows, "svd": svd, "builds": None})))
    page = f"{BEGIN}{END}<!-- rivals: begin --><!-- rivals: end -->"
    text = rewritten(page, Path("benchmarks/README.md"), tmp_path)
    assert "| ours | 0.5 | 2.25 | preadv |" in text and "| lance | - | - | no pylance |" in text
    assert "| ours | 1.5 | 3.0e-10 | Gram |" in text and "build |" not in text


def test_large_builds_are_told_by_case(tmp_path: Path) -> None:
    case = {"wall_s": 90.0, "build_efficiency": 0.81, "worker_peak_bytes": 5e8, "band_weight_bytes": 1e8}
    case |= {"table_bytes": 2e9, "killed_after_cells": 7, "resumed_cells": 6}
    (tmp_path / "large_builds.json").write_text(json.dumps(result(results={"1b": case})))
    page = f"{BEGIN}{END}<!-- large builds: begin --><!-- large builds: end -->"
    text = rewritten(page, Path("benchmarks/README.md"), tmp_path)
    assert "| 1b | 1.5 min | 0.81 | 500 MB | 100 MB | 2.00 GB | 6 |" in text


def test_the_committed_pages_show_the_committed_results() -> None:
    tables = render(REPOSITORY / "benchmarks")
    assert all(f"[{name}]" in tables for name in RESULTS)
    for page in PAGES:
        text = (REPOSITORY / page).read_text()
        current = rewritten(text, page, REPOSITORY / "benchmarks")
        assert current == text, f"{page} is behind its results: python -m tolserve.bench.page"
    committed = [file for file, _ in OTHERS.values() if (REPOSITORY / "benchmarks" / file).exists()]
    assert all(f"]({file})" in (REPOSITORY / "benchmarks/README.md").read_text() for file in committed)
