"""`python -m tolbuild.bench`: rows, SVD, whole builds, memory, reads and writes, each against what the machine can do.

Contestants take turns; figures are ratios of medians. The last line is one JSON object.
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

import torch

from tolbuild.bench import builds, machine, memory, reads, rows, s3_rows, svd, writes
from tolbuild.bench.measure import say, show_ratio

ASKED = {
    "rows_gemm_fraction": "at least 0.80",
    "build_efficiency": "at least 0.60",
    "ray_overhead": "at most 1.15",
    "svd_speedup_vs_torch": "at least 1.5",
    "svd_speedup_vs_torch64": "at least 2",
    "svd_max_rel_error": "below 1e-6",
    "worker_peak_bytes_ratio": "at most 1.10",
    "row_read_vs_preadv": "at most 1.5",
    "row_read_cold_vs_preadv": "at most 1.2",
    "write_vs_raw": "at least 0.6",
    "s3_rows_vs_s3fs": "at least 2.5",
}
"""The keys of the result, in order, and what the project asks of each at full size on a quiet machine."""

Part = Callable[[Path], dict[str, float | None]]


def main() -> int:
    """Measure and print; 0, or 2 for arguments that are none."""
    options = _arguments()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("--device cuda, but torch sees no GPU here", file=sys.stderr)
        return 2
    about = machine.describe(device, options.seed, shlex.join(["python", "-m", "tolbuild.bench", *sys.argv[1:]]))
    say(json.dumps(about))
    began = time.perf_counter()
    results: dict[str, float | None] = dict.fromkeys(ASKED)
    for name, part in _parts(quick=options.quick, device=device, seed=options.seed).items():
        if options.only and name not in options.only:
            continue
        with tempfile.TemporaryDirectory(prefix="tolbuild-bench-", dir=options.folder) as folder:
            measured = part(Path(folder))
        assert set(measured) <= set(ASKED)
        results |= measured
        for key, value in measured.items():
            show_ratio(key, value, ASKED[key])
    say(f"\nsummary, {time.perf_counter() - began:.0f} s{' (quick shapes)' if options.quick else ''}")
    for key, value in results.items():
        show_ratio(key, value, ASKED[key])
    if options.out is not None:
        options.out.write_text(json.dumps({"results": results, "quick": options.quick, **about}, indent=2) + "\n")
    print(json.dumps(results))
    return 0


def _parts(*, quick: bool, device: torch.device, seed: int) -> dict[str, Part]:
    def alone(measure: Callable[..., dict[str, float | None]]) -> Part:
        return lambda _: measure(quick=quick, device=device, seed=seed)

    def on_disk(measure: Callable[..., dict[str, float | None]]) -> Part:
        return lambda folder: measure(quick=quick, device=device, seed=seed, folder=folder)

    return {
        "rows": alone(rows.measure),
        "svd": alone(svd.measure),
        "memory": on_disk(memory.measure),
        "reads": on_disk(reads.measure),
        "writes": on_disk(writes.measure),
        "s3": on_disk(s3_rows.measure),
        "builds": on_disk(builds.measure),
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tolbuild.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller shapes, under 45 s; ratios say less")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to compute")
    parser.add_argument("--only", nargs="+", choices=tuple(_parts(quick=True, device=torch.device("cpu"), seed=0)))
    parser.add_argument("--out", type=Path, help="also write the result here, with machine, versions, seed, command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where tables are written and read; default: the temporary folder")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
