"""Options of `bench cost`; see `tolserve.bench.cost.command` for what they do."""

from __future__ import annotations

import argparse
from pathlib import Path

from tolserve.bench.cost.matrix import FACTORS
from tolserve.bench.cost.prices import Rents, Slo

FOLDER = Path("build/cost")


def add_options(command: argparse.ArgumentParser) -> None:
    """The options besides --quick and --out."""
    command.add_argument("--full", action="store_true", help="all points, at most 60 minutes (default: as --quick)")
    command.add_argument("--report", type=Path, help=f"the page (default {FOLDER}/quick.html or full.html)")
    command.add_argument(
        "--fresh", action="store_true", help="begin anew where an interrupted run would be gone on with"
    )
    command.add_argument("--only", nargs="+", metavar="FACTOR", default=[], help=f"of: {', '.join(FACTORS)}")
    command.add_argument("--data", type=Path, default=Path("data"), help="folder of the corpus (default data)")
    command.add_argument("--work", type=Path, default=FOLDER / "work", help="tables and streams, kept for later runs")
    command.add_argument(
        "--memory-nodes", default="", metavar="HOST:PORT,...", help="nodes of tolserve.bench.cost.node"
    )
    command.add_argument("--links", default="", metavar="NAME=HOST,...", help="ways to the hosts of --memory-nodes")
    command.add_argument(
        "--bare-socket-port", type=int, help="of a bare socket at every link's host, to calibrate with"
    )
    for name, value in vars(Rents()).items():
        command.add_argument(
            f"--{name.replace('_', '-')}", type=float, default=value, help=f"dollars (default {value})"
        )
    for name, value in vars(Slo()).items():
        option = f"--slo-{name.replace('_', '-')}"
        command.add_argument(option, type=float, default=value, help=f"default {value}, see tolserve.bench.cost.prices")
