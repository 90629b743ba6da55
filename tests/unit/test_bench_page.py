"""The pages show the committed results: figures by key, bars, machine and command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tolserve.bench.page import BEGIN, END, PAGES, RESULTS, Figure, figures, render, updated

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


def test_the_committed_pages_show_the_committed_results() -> None:
    tables = render(REPOSITORY / "benchmarks")
    assert all(f"[{name}]" in tables for name in RESULTS)
    for page in PAGES:
        text = (REPOSITORY / page).read_text()
        local = tables if page.parent == Path() else tables.replace("](benchmarks/", "](")
        assert updated(text, local) == text, f"{page} is behind its results: python -m tolserve.bench.page"
