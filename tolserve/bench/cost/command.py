"""The run that the options of `bench cost` ask for."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from typing import Any

import torch

from tolbuild.bench.machine import describe
from tolbuild.interrupts import sigterm_as_interrupt
from tolserve.bench.cost.matrix import matrix
from tolserve.bench.cost.options import FOLDER
from tolserve.bench.cost.prices import Rents, Slo
from tolserve.bench.cost.report import page, words
from tolserve.bench.cost.run import Setting, absent, measure_overhead, servable, sweep
from tolserve.bench.cost.state import Results
from tolserve.bench.cost.summary import compared, summarise
from tolserve.bench.cost.terminal import table
from tolserve.bench.cost_model import check
from tolserve.transport.link import Address

SEED = 0
"""Of rows, streams that are drawn, and prompts."""


def main(options: argparse.Namespace) -> None:
    """Measure what is asked, write the result and the page, print the table and the last line.

    Raises:
        ValueError: options that contradict each other, or a file of another run.
        NodeError: a node that was given does not answer, or one did not start.
        SystemExit: 130 after Ctrl-C.
    """
    setting = _setting(options)
    points, left_out = servable(setting, matrix(full=setting.full, links=list(setting.links), only=options.only))
    reasons = absent(points)
    points = [point for point in points if point.name not in reasons]
    key = {
        "full": setting.full,
        "points": [point.name for point in points],
        "rents": vars(setting.rents),
        "slo": vars(setting.slo),
        "data": str(setting.data),
        "memory_nodes": len(setting.memory_nodes),
        "links": sorted(setting.links),
    }
    name = "full" if setting.full else "quick"
    out = options.out or FOLDER / f"{name}.json"
    report = options.report or out.with_suffix(".html")
    if report == out:
        raise ValueError(f"--out {out} is where the page would go; name a .json, or another --report")
    results = Results(out, points, key, fresh=options.fresh)
    print(f"result: {out}\nreport: {report} (when all is measured)", flush=True)
    if results.num_kept:
        print(f"going on with the {results.num_kept} measurements that are there; --fresh begins anew", flush=True)
    for point in left_out:
        print(f"left out, since no given node holds its rows: {point.name}", flush=True)
    for name, reason in reasons.items():
        print(f"left out: {name}: {reason}", flush=True)
    results.about |= _about(setting) | ({"absent": reasons} if reasons else {})
    try:
        with sigterm_as_interrupt() as interruption:
            sweep(setting, results)
            measure_overhead(setting, results)
            results.finish()
    except KeyboardInterrupt:
        print(f"interrupted: {results.num_kept} measurements are kept; the same command goes on", file=sys.stderr)
        sys.exit(interruption.exit_code)
    result = results.to_dict()
    page.write(result, report)
    print(table(result["points"]))
    if found := compared(result["points"]):
        print(f"\nThe cost model against the paced points:\n{check.table(check.errors(found))}")
        print(f"  {words.from_descriptions(result)}\n")
    print(json.dumps(summarise(result)), flush=True)


def _about(setting: Setting) -> dict[str, Any]:
    line = shlex.join(["python", "-m", "tolserve.bench", *sys.argv[1:]])
    device = torch.device("cpu")
    return {
        "quick": not setting.full,
        "rents": vars(setting.rents),
        "slo": vars(setting.slo),
        **describe(device, SEED, line),
    }


def _setting(options: argparse.Namespace) -> Setting:
    if options.quick and options.full:
        raise ValueError("--quick and --full are two runs; give one of them")
    links = dict(_pair(part, "=", "--links") for part in options.links.split(",") if part)
    nodes = tuple(_address(part) for part in options.memory_nodes.split(",") if part)
    if links and not nodes:
        raise ValueError("--links are ways to memory nodes; give --memory-nodes")
    return Setting(
        full=options.full,
        data=options.data,
        work=options.work,
        rents=Rents(**{name: getattr(options, name) for name in vars(Rents())}),
        slo=Slo(**{name: getattr(options, f"slo_{name}") for name in vars(Slo())}),
        memory_nodes=nodes,
        links=links or ({"given": ""} if nodes else {}),
        bare_socket_port=options.bare_socket_port,
    )


def _address(text: str) -> Address:
    host, port = _pair(text, ":", "--memory-nodes")
    if not port.isdigit():
        raise ValueError(f"--memory-nodes has {text!r}; each is HOST:PORT")
    return host, int(port)


def _pair(text: str, mark: str, option: str) -> tuple[str, str]:
    before, found, after = text.rpartition(mark)
    if not found or not before or not after:
        form = "HOST:PORT" if mark == ":" else "NAME=HOST"
        raise ValueError(f"{option} has {text!r}; each is {form}")
    return before, after
