"""Whether a worker's memory grows with the vocabulary: `worker_peak_bytes_ratio`."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import torch

from tolbuild.bench.measure import say
from tolbuild.bench.models import write_checkpoint

WIDTH, HIDDEN, LAYERS = 1024, 256, 1
"""Few hidden units: a small network is quickly computed, and the smaller a worker, the more any growth shows."""


def measure(*, quick: bool, device: torch.device, seed: int, folder: Path) -> dict[str, float | None]:
    """Peak private memory of a build with one worker in a fresh process, at two vocabularies in turn."""
    sizes = (8192, 32_768) if quick else (32_768, 131_072)
    width, rounds = (256, 1) if quick else (WIDTH, 5)
    say(f"memory: one worker, V {sizes[0]:,} and {sizes[1]:,}, d {width}, rank {width // 4} int8")
    peaks: dict[int, list[int]] = {size: [] for size in sizes}
    for size in sizes:
        write_checkpoint(
            folder / f"model-{size}", vocab_size=size, width=width, hidden=HIDDEN, num_layers=LAYERS, seed=seed
        )
    for _ in range(rounds):
        for size, taken in peaks.items():
            taken.append(_peak_bytes(folder / f"model-{size}", folder / "table", width // 4, device))
    small, large = (statistics.median(peaks[size]) for size in sizes)
    for size, taken in peaks.items():
        text = ", ".join(f"{peak / 1e6:.1f}" for peak in taken)
        say(f"    V {size:>9,}: peak private memory above the imports {text} MB")
    return {"worker_peak_bytes_ratio": large / small}


def _peak_bytes(checkpoint: Path, table: Path, rank: int, device: torch.device) -> int:
    arguments = [str(checkpoint), str(table), str(rank), device.type]
    command = [sys.executable, "-m", "tolbuild.bench.worker_memory", *arguments]
    try:
        answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"the measured build failed: {error.stderr[-2000:]}") from error
    finally:
        shutil.rmtree(table, ignore_errors=True)
    report: dict[str, int] = json.loads(answer.splitlines()[-1])
    return report["peak_bytes"] - report["imports_bytes"]
