"""`python -m tolserve.bench <what> [--quick] [--out FILE]`: see each bench for what it measures."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path

import torch

from tolbuild.bench.machine import describe
from tolbuild.table.errors import ToLError
from tolserve.bench.cost import options as cost_options

BENCHES = {
    "rows": "the row path against a bare socket, and what a fetch adds to a step at GPU speed",
    "engine": "the engine against Hugging Face transformers, and what the gateway adds",
    "gpu": "base against memory on a GPU, rows on the device, in host memory and over TCP",
    "cost": "what networked memory costs: a matrix of places, links, rows, caches and models, with a report",
}
COMMANDS = {"load": "load on an endpoint, ours or another: open or closed loop, vLLM's figures"}
"""With options of their own: `load --help`."""


def main(arguments: list[str] | None = None) -> None:
    """Run one bench; its result is the last line printed and, with `--out`, a file."""
    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] and given[0] in COMMANDS:
        sys.exit(importlib.import_module(f"tolserve.bench.{given[0]}.command").main(given[1:]))
    parser = argparse.ArgumentParser(prog="python -m tolserve.bench", description=__doc__)
    commands = parser.add_subparsers(dest="bench", required=True)
    for name, summary in COMMANDS.items():
        commands.add_parser(name, help=summary)
    for name, summary in BENCHES.items():
        command = commands.add_parser(name, help=summary, description=summary)
        command.add_argument("--quick", action="store_true", help="smaller and shorter, the same keys")
        command.add_argument("--out", type=Path, help="write the result there as well")
        if name == "cost":
            cost_options.add_options(command)
    options = parser.parse_args(given)
    if options.bench == "cost":
        from tolserve.bench.cost import command as cost

        try:
            cost.main(options)
        except (ValueError, ToLError) as error:
            parser.error(str(error))
        return
    bench = importlib.import_module(f"tolserve.bench.{options.bench}")
    line = f"python -m tolserve.bench {options.bench}" + (" --quick" if options.quick else "")
    about = describe(torch.device("cuda" if torch.cuda.is_available() else "cpu"), bench.SEED, line)
    result = {"bench": options.bench, "quick": options.quick, **bench.run(quick=options.quick), **about}
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
