"""Builds at the paper's size and at vocabularies up to a million, on Ray workers of this machine.

    python benchmarks/large_builds/study.py --folder /srv/large --out benchmarks/large_builds.json

Run from the root of the repository; see README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import psutil
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from cluster import processes
from cluster.head import ClusterOptions, client_environment
from cluster.session import Session, session
from tolbuild.bench import machine
from tolbuild.bench.measure import say

WATCH_S, SEARCH_S = 0.25, 2.0
"""Time between samples of the processes, and between searches for new ones."""
PRODUCT = 2048
"""Width of the square products whose rate is the measure, and turns of each type each time that it is taken."""
TURNS = 6


@dataclass(frozen=True, kw_only=True)
class Case:
    """One table: a model's shape, a rank and codes. kill_at: share of the first pass's cells after which all die."""

    name: str
    vocab_size: int
    width: int
    hidden: int
    num_layers: int
    rank: int | None
    codes: str
    kill_at: float | None = None

    @property
    def model(self) -> str:
        """Cases of one model share its checkpoint."""
        return f"{self.vocab_size}-{self.width}-{self.hidden}-{self.num_layers}"

    @property
    def flops32(self) -> int:
        """Rows once, and their projection."""
        rows = self.vocab_size * self.num_layers
        return 6 * rows * self.width * self.hidden + 2 * rows * self.width * (self.rank or 0)

    @property
    def flops64(self) -> int:
        """Gram matrices, counted as plain products, as `python -m tolbuild.bench` counts them."""
        return 2 * self.vocab_size * self.width**2 * self.num_layers if self.rank else 0

    @property
    def band_bytes(self) -> int:
        """Feed-forward weights of a band of four layers in fp32."""
        return 4 * 3 * self.width * self.hidden * min(4, self.num_layers)


SMALL = {"width": 512, "hidden": 1368, "num_layers": 4, "rank": 128, "codes": "int8"}
PAPER = {"vocab_size": 128_256, "width": 2048, "hidden": 5464, "num_layers": 24}

CASES = (
    Case(name="v32k", vocab_size=32_768, **SMALL),
    Case(name="v256k", vocab_size=262_144, **SMALL),
    Case(name="v1m", vocab_size=1_048_576, **SMALL),
    Case(name="1b-full-fp16", **PAPER, rank=None, codes="fp16", kill_at=0.3),
    Case(name="1b-1024-int8", **PAPER, rank=1024, codes="int8", kill_at=0.3),
)


@dataclass
class Watch:
    """What a build's processes took: CPU seconds of all, and the most anonymous memory of one worker."""

    cpu_s: dict[int, float] = field(default_factory=dict)
    peak_bytes: int = 0
    _workers: list[psutil.Process] = field(default_factory=list)
    _next_search: float = 0.0

    def look(self, mark: str, builder: int) -> None:
        """Take one sample of a build's command and of the cluster's workers."""
        if time.monotonic() >= self._next_search:
            self._workers = workers_of(mark)
            self._next_search = time.monotonic() + SEARCH_S
        for pid in [*(worker.pid for worker in self._workers), builder]:
            try:
                process = psutil.Process(pid)
                times, status = process.cpu_times(), Path(f"/proc/{process.pid}/status").read_text()
            except (psutil.Error, OSError):
                continue
            self.cpu_s[pid] = times.user + times.system
            if pid != builder:
                anonymous = re.search(r"RssAnon:\s+(\d+) kB", status)
                self.peak_bytes = max(self.peak_bytes, int(anonymous[1]) * 1024 if anonymous else 0)


def main() -> None:
    """Build every case, print and write what it took."""
    options = arguments()
    options.folder.mkdir(parents=True, exist_ok=True)
    command = " ".join(["python", "benchmarks/large_builds/study.py", *sys.argv[1:]])
    about = machine.describe(torch.device("cpu"), 0, command)
    cases = [case for case in CASES if not options.only or case.name in options.only]
    results = {}
    with session("large", ClusterOptions(num_cpus=len(os.sched_getaffinity(0)))) as running:
        for case in cases:
            results[case.name] = measure(case, options.folder, running)
            say(json.dumps({case.name: results[case.name]}))
            if options.out:
                options.out.write_text(json.dumps({"results": results, **about}, indent=2) + "\n")
    print(json.dumps(results))


def measure(case: Case, folder: Path, running: Session) -> dict[str, object]:
    """One case: the build, killed and resumed where the case says so, then the check of the whole table."""
    say(
        f"\n{case.name}: V {case.vocab_size:,}, d {case.width}, K {case.hidden}, {case.num_layers} layers, "
        f"rank {case.rank or 'full'} {case.codes}"
    )
    checkpoint, table = folder / f"model-{case.model}", folder / f"table-{case.name}"
    shutil.rmtree(table, ignore_errors=True)
    if not (checkpoint / "config.json").exists():
        synthesize(case, checkpoint)
    rates = [product_rates()]
    watch, began = Watch(), time.perf_counter()
    killed: dict[str, object] = {}
    if case.kill_at is not None:
        killed = build(case, checkpoint, table, folder, running, watch, kill_at=case.kill_at)
        rates.append(product_rates())
        began += rates[-1]["took_s"]  # the products in between are not the build's
    finished = build(case, checkpoint, table, folder, running, watch)
    wall_s = time.perf_counter() - began
    rates.append(product_rates())
    table_bytes = sum(path.stat().st_size for path in table.rglob("*") if path.is_file())
    checked_s = check(table, running)
    shutil.rmtree(table)
    rate32, rate64 = (max(rate[name] for rate in rates) for name in ("fp32", "fp64"))
    ideal_s = case.flops32 / rate32 + case.flops64 / rate64
    cpu_s = sum(watch.cpu_s.values())
    return {
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "ideal_cpu_s": ideal_s,
        "build_efficiency": ideal_s / cpu_s,
        "build_efficiency_wall": ideal_s / len(os.sched_getaffinity(0)) / wall_s,
        "worker_peak_bytes": watch.peak_bytes,
        "band_weight_bytes": case.band_bytes,
        "table_bytes": table_bytes,
        "verify_s": checked_s,
        "killed_after_cells": killed.get("cells"),
        "resumed_cells": finished["resumed"],
        "flops_per_core_s": {"fp32": rate32, "fp64": rate64},
    }


def build(
    case: Case,
    checkpoint: Path,
    table: Path,
    folder: Path,
    running: Session,
    watch: Watch,
    kill_at: float | None = None,
) -> dict[str, object]:
    """Run the build's command; with `kill_at`, SIGKILL it and every worker once that share of its cells is done."""
    line = [sys.executable, "-m", "tolbuild.run", "--checkpoint", str(checkpoint), "--table", str(table),
            "--rank", str(case.rank or "full"), "--codes", case.codes, "--spool-dir", str(folder)]  # fmt: skip
    log = folder / f"log-{case.name}.txt"
    with log.open("a") as out, watched(watch, running, line, out) as child:
        while child.poll() is None:
            time.sleep(1.0)
            done, total = progress(log)
            if kill_at is not None and total and done >= kill_at * total:
                kill(child, running.cluster.mark)
                say(f"    killed, with every worker, at {done} of {total} cells")
                return {"cells": done}
    text = log.read_text()
    if child.returncode:
        raise SystemExit(f"the build failed, see {log}:\n{text[-2000:]}")
    resumed = re.findall(r"; (\d+) cells came from before", text)
    say("    " + "\n    ".join(line.strip() for line in text.splitlines() if line.startswith(("  time", "  workers"))))
    return {"resumed": int(resumed[-1]) if resumed else 0}


@contextmanager
def watched(watch: Watch, running: Session, line: list[str], out: IO[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A command on the cluster, with samples of it and of the workers from a thread."""
    child = subprocess.Popen(line, stdout=out, stderr=subprocess.STDOUT, env=client_environment(running.cluster))
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(WATCH_S):
            if child.poll() is None:
                watch.look(running.cluster.mark, child.pid)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield child
    finally:
        ended.set()
        thread.join()
        if child.poll() is None:
            child.kill()
            child.wait()


def kill(child: subprocess.Popen[bytes], mark: str) -> None:
    """SIGKILL the command and the workers that it has, and wait until they are gone."""
    workers = workers_of(mark)
    child.send_signal(signal.SIGKILL)
    for process in workers:
        process.kill()
    child.wait()
    psutil.wait_procs(workers, timeout=30)


def progress(log: Path) -> tuple[int, int]:
    """Cells done and in all of the pass that comes first, from the last line of progress."""
    found = re.findall(r"(?:sums|codes) ([\d,]+)/([\d,]+)", log.read_text().rpartition("left")[2])
    return (int(found[0][0].replace(",", "")), int(found[0][1].replace(",", ""))) if found else (0, 0)


def workers_of(mark: str) -> list[psutil.Process]:
    """The Ray actors of a cluster that work at a build."""
    return [process for process in processes.family(mark) if _is_worker(process)]


def _is_worker(process: psutil.Process) -> bool:
    try:
        return process.cmdline()[:1] != [] and process.cmdline()[0].startswith("ray::WorkerActor")
    except psutil.Error:
        return False


def synthesize(case: Case, checkpoint: Path) -> None:
    """The case's checkpoint of random weights."""
    shape = ["--vocab-size", case.vocab_size, "--hidden-size", case.width, "--intermediate-size", case.hidden,
             "--layers", case.num_layers]  # fmt: skip
    line = [sys.executable, "-m", "tolbuild.synthesize", "--out", checkpoint, *shape]
    subprocess.run(list(map(str, line)), check=True, stdout=subprocess.DEVNULL)


def check(table: Path, running: Session) -> float:
    """Seconds that `tolbuild.verify` takes to find the table sound."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "tolbuild.verify", str(table)], check=True)
    return time.perf_counter() - began


def product_rates() -> dict[str, float]:
    """FLOP/s for each second of CPU time that square products reach on all cores at once, one thread each; by type."""
    began = time.perf_counter()
    cores = len(os.sched_getaffinity(0))
    rates = {name: max(_rate(dtype, cores) for _ in range(TURNS)) for name, dtype in
             (("fp32", torch.float32), ("fp64", torch.float64))}  # fmt: skip
    return rates | {"took_s": time.perf_counter() - began}


def _rate(dtype: torch.dtype, cores: int) -> float:
    torch.set_num_threads(1)
    factors = [torch.randn(PRODUCT, PRODUCT, dtype=dtype) for _ in range(cores)]
    multiply: Callable[[torch.Tensor], torch.Tensor] = lambda factor: factor @ factor  # noqa: E731
    began = time.process_time()
    with ThreadPoolExecutor(cores) as threads:
        list(threads.map(multiply, factors))
    return 2 * PRODUCT**3 * cores / (time.process_time() - began)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="for checkpoints, tables and spooled rows: 45 GB")
    parser.add_argument("--only", nargs="+", choices=[case.name for case in CASES], help="leave the others out")
    parser.add_argument("--out", type=Path, help="write the result here, with machine, versions and command")
    return parser.parse_args()


if __name__ == "__main__":
    main()
