"""`python -m tolbuild.bench.rivals`: random rows, SVD and a whole build beside what other libraries take for them.

Each rival competes in its fastest mode, which is named; contestants take turns, figures are medians. A library that is
not installed is null with the reason (pip install 'memoryllm-tol[rivals]'). The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tolbuild.bench import machine
from tolbuild.bench.measure import say
from tolbuild.bench.rivals import builds, reads, svd

PACKAGES = (
    "torch", "numpy", "tensorstore", "zarr", "pylance", "pyarrow", "duckdb", "engramdb-python", "scikit-learn", "dask",
)  # fmt: skip

PARTS = ("rows", "svd", "builds")


def main() -> int:
    """Measure and print."""
    options = _arguments()
    line = shlex.join(["python", "-m", "tolbuild.bench.rivals", *sys.argv[1:]])
    about = machine.describe(torch.device("cpu"), options.seed, line) | {
        "versions": {"python": sys.version.split()[0]} | dict.fromkeys(PACKAGES) | machine.versions(PACKAGES),
    }
    say(json.dumps(about))
    began = time.perf_counter()
    parts: dict[str, Callable[[Path], dict[str, Any]]] = {
        "rows": lambda folder: reads.measure(quick=options.quick, seed=options.seed, folder=folder),
        "svd": lambda _: svd.measure(quick=options.quick, seed=options.seed),
        "builds": lambda folder: builds.measure(quick=options.quick, seed=options.seed, folder=folder),
    }
    results: dict[str, Any] = dict.fromkeys(PARTS)
    for name in options.only or PARTS:
        with tempfile.TemporaryDirectory(prefix="tolbuild-rivals-", dir=options.folder) as folder:
            results[name] = parts[name](Path(folder))
    say(f"{time.perf_counter() - began:.0f} s{' (quick shapes)' if options.quick else ''}")
    result = {"results": results, "quick": options.quick, **about}
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({**results, "versions": about["versions"]}))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tolbuild.bench.rivals", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller shapes and fewer turns, about a minute")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="leave the others null")
    parser.add_argument("--out", type=Path, help="also write the result here, with machine, versions, seed, command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where data sets are written (2 GB); default: the temporary folder")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
