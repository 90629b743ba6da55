"""`python -m tolserve.bench.cost.report.page RESULT.json OUT.html`: the page of a result."""

from __future__ import annotations

import argparse
import json
from html import escape
from pathlib import Path
from typing import Any

from tolserve.bench.cost.report import matrix_table, plots, words
from tolserve.bench.cost.report.data import Run
from tolserve.bench.cost.report.style import CSS, SCRIPT

MAX_BYTES = 1_000_000


def render(result: dict[str, Any]) -> str:
    """One HTML document that loads nothing."""
    run = Run(result)
    sections = [
        f"<h1>{escape(words.QUESTION)}</h1>",
        f'<p class="answer">{escape(words.answer(run))}</p>',
        words.ladder(run),
        f'<h2>Plots</h2><div class="plots">{plots.figures(run)}</div>',
        "<h2>All points</h2><p class=soft>Press a heading to sort. Prices are of a step (paced) or a round (real).</p>",
        matrix_table.render(run),
        f"<h2>Method</h2>{words.method(run)}",
        f"<h2>Machine</h2>{words.machine(run)}",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>What networked memory costs</title><style>{CSS}</style></head>\n"
        f"<body><main>{chr(10).join(filter(None, sections))}</main><script>{SCRIPT}</script></body></html>\n"
    )


def write(result: dict[str, Any], path: Path) -> None:
    """The page of a result at `path`."""
    page = render(result)
    assert len(page.encode()) < MAX_BYTES, f"the page has {len(page):,} characters"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page)


def main(arguments: list[str] | None = None) -> None:
    """Make the page of a result file."""
    parser = argparse.ArgumentParser(prog="python -m tolserve.bench.cost.report.page", description=__doc__)
    parser.add_argument("result", type=Path, help="JSON of `bench cost`")
    parser.add_argument("out", type=Path, help="HTML to write")
    given = parser.parse_args(arguments)
    write(json.loads(given.result.read_text()), given.out)


if __name__ == "__main__":
    main()
