"""`python -m tolserve.bench.page`: put the committed results into the pages that show them.

Reads benchmarks/*.json and rewrites what stands between the two figure marks of benchmarks/README.md and README.md, and
between the marks of other results in the former. The words around them are written by hand.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tolbuild.bench.__main__ import ASKED
from tolserve.bench import page_tables

PAGES = (Path("README.md"), Path("benchmarks/README.md"))
SERVING = {
    "tcp_vs_socket_96k": "at most 1.5",
    "tcp_vs_socket_12m": "at least 0.85",
    "client_overhead_us": "at most 150",
    "paced_overhead.12k_b1": "at most 0.01",
    "paced_overhead.12k_b8": "at most 0.015",
    "paced_overhead.12k_b64": "at most 0.03",
    "paced_overhead.96k_b8": "at most 0.03",
    "paced_overhead.12k_b8_10us": "at most 0.05",
    "paced_overhead.12k_b8_rtt100us": "at most 0.03",
    "node_vs_socket_4_clients": "at least 0.85",
    "engine_vs_transformers.ragged": "at least 1.5",
    "engine_vs_transformers.lockstep": "at least 0.95",
    "engine_vs_transformers.b1": "at least 1.0",
    "gateway_us_per_token": "at most 300",
    "gateway_ttft_overhead_ms": "at most 10",
}
"""The keys of serving, nested ones with a dot, and what the project asks of each on a quiet machine."""
OTHERS: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "rivals": ("rivals.json", page_tables.rivals),
    "large builds": ("large_builds.json", page_tables.large_builds),
}
"""Results without bars, on the second page only: the name of the marks, the file, the tables."""
RESULTS = {"build.json": ASKED, "rows.json": SERVING, "engine.json": SERVING}


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured figure beside what is asked of it."""

    key: str
    value: float
    asked: str

    @property
    def is_met(self) -> bool:
        """Whether the value keeps what `asked` says."""
        bound = float(self.asked.split()[-1])
        return self.value >= bound if self.asked.startswith("at least") else self.value <= bound


def figures(result: dict[str, Any], asked: dict[str, str]) -> list[Figure]:
    """The figures of one result that have a bar, in the bars' order."""
    values = result.get("results", result)
    found = []
    for key, bar in asked.items():
        value = values.get(key)
        if value is None and "." in key:
            group, _, name = key.partition(".")
            value = values.get(group, {}).get(name)
        if value is not None:
            found.append(Figure(key=key, value=float(value), asked=bar))
    return found


def render(folder: Path) -> str:
    """The tables of all results under `folder`, each with its command, machine and versions.

    Raises:
        ValueError: a result is of a `--quick` run.
    """
    parts = []
    for name, asked in RESULTS.items():
        path = folder / name
        if not path.exists():
            continue
        result = json.loads(path.read_text())
        if result["quick"]:
            raise ValueError(f"{path} is of a --quick run; run `{result['command'].replace(' --quick', '')}`")
        rows = [
            f"| {one.key} | {one.value:.3g} | {one.asked} | {'yes' if one.is_met else 'no'} |"
            for one in figures(result, asked)
        ]
        parts.append(
            "\n".join([_origin(name, result), "", "| key | measured | asked | met |", "|---|---|---|---|", *rows])
        )
    return "\n\n".join(parts)


def _origin(name: str, result: dict[str, Any]) -> str:
    machine = result["machine"]
    versions = ", ".join(f"{package} {version}" for package, version in result["versions"].items())
    return (
        f"`{result['command']}` ([{name}](benchmarks/{name})): {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['memory_bytes'] / 2**30:.0f} GiB, {machine['device']}, {machine['kernel']}; {versions}; "
        f"seed {result['seed']}."
    )


def updated(page: str, tables: str, name: str = "figures") -> str:
    """The text of a page with `tables` between the marks of a name.

    Raises:
        ValueError: it has not one of each mark.
    """
    first, last = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, begin, rest = page.partition(first)
    _, end, after = rest.partition(last)
    if not begin or not end:
        raise ValueError(f"no {first} ... {last} to put the figures between")
    return f"{before}{first}\n\n{tables}\n\n{last}{after}"


def rewritten(text: str, page: Path, folder: Path) -> str:
    """A page with all tables that belong there from the results under `folder`."""
    tables = render(folder)
    if page.parent == Path():
        return updated(text, tables)
    text = updated(text, tables.replace("](benchmarks/", "]("))
    for name, (file, table) in OTHERS.items():
        if (folder / file).exists():
            result = json.loads((folder / file).read_text())
            origin = _origin(file, result).replace("](benchmarks/", "](")
            text = updated(text, f"{origin}\n\n{table(result)}", name)
    return text


def main(arguments: list[str] | None = None) -> int:
    """Rewrite the pages; 1 with the reason where that cannot be."""
    argparse.ArgumentParser(prog="python -m tolserve.bench.page", description=__doc__).parse_args(arguments)
    try:
        for page in PAGES:
            page.write_text(rewritten(page.read_text(), page, Path("benchmarks")))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
