"""Whole builds against the arithmetic that they cannot avoid: `build_efficiency`, `ray_overhead`."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from tolbuild.bench.measure import Contestant, Timing, in_turn, joined, say, show
from tolbuild.bench.models import write_checkpoint
from tolbuild.bench.products import best_rate, square_products
from tolbuild.build_config import BuildConfig
from tolbuild.drive.driver import build_table

Sizes = dict[torch.dtype, tuple[int, ...]]

FULL_SIZES: Sizes = {torch.float32: (1024, 2048, 4096), torch.float64: (1024, 2048)}
QUICK_SIZES: Sizes = {torch.float32: (1024, 2048), torch.float64: (1024, 2048)}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A model and a rank; codes are int8."""

    vocab_size: int
    width: int
    hidden: int
    num_layers: int
    rank: int

    @property
    def flops32(self) -> int:
        """Rows once, and their projection."""
        rows = self.vocab_size * self.num_layers
        return 6 * rows * self.width * self.hidden + 2 * rows * self.width * self.rank

    @property
    def flops64(self) -> int:
        """Gram matrices, counted as plain products."""
        return 2 * self.vocab_size * self.width**2 * self.num_layers

    def begin(self, folder: Path, seed: int) -> str:
        """Say what is built, write its random checkpoint under `folder` and return the URL."""
        say(
            f"builds: V {self.vocab_size:,}, d {self.width}, K {self.hidden}, {self.num_layers} layers, "
            f"rank {self.rank} int8, {torch.get_num_threads()} cores"
        )
        return write_checkpoint(
            folder / "model",
            vocab_size=self.vocab_size,
            width=self.width,
            hidden=self.hidden,
            num_layers=self.num_layers,
            seed=seed,
        )


FULL = Shape(vocab_size=32_768, width=1024, hidden=2736, num_layers=4, rank=256)
QUICK = Shape(vocab_size=8192, width=512, hidden=1368, num_layers=2, rank=128)


def measure(*, quick: bool, device: torch.device, seed: int, folder: Path) -> dict[str, float | None]:
    """Builds from opening the checkpoint to the commit, in this process and on Ray, in turn with matrix products."""
    shape, sizes, rounds = (QUICK, QUICK_SIZES, 2) if quick else (FULL, FULL_SIZES, 3)
    checkpoint = shape.begin(folder, seed)
    config = BuildConfig(
        checkpoint=checkpoint,
        table=str(folder / "table"),
        rank=shape.rank,
        codes="int8",
        layers_per_band=shape.num_layers,
        device="cuda" if device.type == "cuda" else "cpu",
    )
    with _builds(config) as builds:
        timings = _in_turn_with_products(builds, device, sizes, rounds)
    show(timings)
    alone = timings[builds[0].name].median_s
    rate32, rate64 = (best_rate(timings, dtype, some) for dtype, some in sizes.items())
    ideal_s = shape.flops32 / rate32 + shape.flops64 / rate64
    say(f"    best products {rate32 / 1e9:,.1f} GFLOP/s fp32, {rate64 / 1e9:,.1f} fp64: {ideal_s:.2f} s at the least")
    over_ray = timings[builds[1].name].median_s / alone if len(builds) > 1 else None
    return {"build_efficiency": ideal_s / alone, "ray_overhead": over_ray}


def _in_turn_with_products(
    builds: list[Contestant], device: torch.device, sizes: Sizes, num_rounds: int
) -> dict[str, Timing]:
    """Every round: each product three times, then each build once."""
    threads = torch.get_num_threads()
    products = [square for dtype, some in sizes.items() for square in square_products(dtype, device, some)]
    rounds = []
    for number in range(num_rounds):
        torch.set_num_threads(threads)
        rounds.append(in_turn(products, rounds=3, warm_up=number == 0, device=device))
        rounds.append(in_turn(builds[:: 1 if number % 2 else -1], rounds=1, warm_up=False))
        say(f"    round {number + 1} of {num_rounds}")
    torch.set_num_threads(threads)
    return joined(rounds)


@contextmanager
def _builds(config: BuildConfig) -> Iterator[list[Contestant]]:
    """A build by threads of this process and, where Ray is installed, one by Ray workers of this machine."""

    def clear() -> None:
        shutil.rmtree(config.table, ignore_errors=True)

    threads = Contestant(name="build, --no-ray", run=lambda: build_table(config), prepare=clear)
    if importlib.util.find_spec("ray") is None:
        say("    Ray is not installed: ray_overhead is not measured")
        yield [threads]
        return
    from tolbuild.on_ray.bench import Timed, local_cluster

    timed = Timed()
    with local_cluster():
        yield [
            threads,
            Contestant(
                name="build through Ray, workers' start apart",
                run=lambda: build_table(config, timed.pool),
                prepare=clear,
                uncounted=lambda: timed.start_s,
            ),
        ]
