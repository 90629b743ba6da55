"""A whole table: this build against a straightforward pipeline of dask and zarr that does the same work."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from tolbuild.bench.builds import FULL, QUICK, Shape
from tolbuild.bench.measure import Contestant, say
from tolbuild.bench.rivals import dask_build
from tolbuild.bench.rivals.best import Way, compete
from tolbuild.bench.rivals.modes import MissingError, load
from tolbuild.build_config import BuildConfig
from tolbuild.drive.driver import build_table

RIVALS = ("ours", "dask_zarr")
LIBRARIES = ("safetensors", "dask.array", "zarr", "threadpoolctl")


def measure(*, quick: bool, seed: int, folder: Path) -> dict[str, Any]:
    """Medians in s by contestant, from the checkpoint to the finished table, and each one's error of rows."""
    shape, rounds = (QUICK, 2) if quick else (FULL, 3)
    checkpoint = shape.begin(folder, seed)
    errors: dict[str, float] = {}
    ways, missing = [_ours(checkpoint, folder / "ours", shape, errors)], {}
    try:
        for library in LIBRARIES:
            load(library)
        ways.append(_dask(Path(checkpoint), folder / "dask", shape, errors))
    except MissingError as reason:
        missing["dask_zarr"] = str(reason)
    result = compete(ways, rivals=RIVALS, trial_rounds=1, rounds=rounds, warm_up=quick)
    for name, error in errors.items():
        say(f"    {name}: rows rebuilt from the table are off by {100 * error:.3f} % in the worst layer")
    return {"seconds": result.medians_s, "modes": result.ways, "relative_error": errors, "missing": missing}


def _ours(checkpoint: str, table: Path, shape: Shape, errors: dict[str, float]) -> Way:
    config = BuildConfig(
        checkpoint=checkpoint,
        table=str(table),
        rank=shape.rank,
        codes="int8",
        row_scales="never",
        layers_per_band=shape.num_layers,
        device="cpu",
        no_ray=True,
    )

    def run() -> None:
        manifest = build_table(config).manifest
        assert manifest is not None
        errors["ours"] = max(stat.relative_error for stat in manifest.layer_stats)

    return _way("ours", "tolbuild.run --no-ray, checksums and fsync included", run, table)


def _dask(checkpoint: Path, table: Path, shape: Shape, errors: dict[str, float]) -> Way:
    def run() -> None:
        errors["dask_zarr"] = max(dask_build.build(checkpoint, table, shape.rank))

    return _way("dask_zarr", "threads, rows of a layer kept in memory", run, table)


def _way(rival: str, text: str, run: Any, table: Path) -> Way:
    threads = torch.get_num_threads()

    def prepare() -> None:
        torch.set_num_threads(threads)
        shutil.rmtree(table, ignore_errors=True)

    return Way(rival=rival, text=text, contestant=Contestant(name=f"{rival}, {text}", run=run, prepare=prepare))
