"""How long a build would take and what it would cost on workers that are described, not here."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from tolbuild.drive.estimate import estimate
from tolbuild.drive.progress import duration
from tolbuild.plan import Plan


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True, kw_only=True)
class Device:
    """One worker. Rates are what builds reach, not what a data sheet promises.

    row_flops: FLOP/s of rows and their projection. fp64_flops: of Gram matrices and eigenvectors.
    transfer_bytes_per_s: of reading the checkpoint and writing the table. start_s: until a worker computes.
    dollars_per_hour: None where no price is known. source: where the figures come from.

    Raises:
        ValueError: a rate that is not positive, or a negative time or price.
    """

    name: str
    row_flops: float
    fp64_flops: float
    transfer_bytes_per_s: float
    start_s: float = 0.0
    dollars_per_hour: float | None = None
    source: str = ""

    def __post_init__(self) -> None:
        for name in ("row_flops", "fp64_flops", "transfer_bytes_per_s"):
            if not _is_number(value := getattr(self, name)) or not 0 < value < math.inf:
                raise ValueError(f"device {self.name}: {name} is {value!r}; it must be a positive number")
        for name in ("start_s", "dollars_per_hour"):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and 0 <= value < math.inf):
                raise ValueError(f"device {self.name}: {name} is {value!r}; it must be a number of at least 0")


KNOWN = {
    "cpu-core": Device(
        name="cpu-core",
        row_flops=85e9,
        fp64_flops=42e9,
        transfer_bytes_per_s=200e6,
        start_s=4.0,
        source="one core of the AMD EPYC of benchmarks/build.json, its matrix products times 0.9; no price",
    ),
    "h100": Device(
        name="h100",
        row_flops=0.6 * 989e12,
        fp64_flops=0.6 * 67e12,
        transfer_bytes_per_s=1e9,
        start_s=30.0,
        dollars_per_hour=2.49,
        source="60 % of NVIDIA's data sheet for H100 SXM (bf16 and fp64 tensor cores, dense), not measured; the price "
        "is that of one H100 on demand at Lambda in 2026, others ask up to 12",
    ),
}
"""Descriptions that `--device-description` knows by name."""


def load_device(name_or_path: str) -> Device:
    """A known device, or one from a JSON file.

    Raises:
        ValueError: no such name or file, or a file that describes no device.
    """
    if name_or_path in KNOWN:
        return KNOWN[name_or_path]
    path = Path(name_or_path)
    if not path.is_file():
        raise ValueError(f"--device-description {name_or_path}: no such file, and known are {', '.join(sorted(KNOWN))}")
    try:
        found: Any = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"--device-description {path}: no JSON: {error}") from error
    names = {field.name for field in fields(Device)}
    if not isinstance(found, dict) or set(found) - names:
        raise ValueError(f"--device-description {path}: an object with some of {', '.join(sorted(names))} is expected")
    try:
        return Device(**{"name": path.stem, **found})
    except TypeError as error:
        raise ValueError(f"--device-description {path}: {str(error).removeprefix('Device.__init__() ')}") from error


@dataclass(frozen=True, kw_only=True)
class TimeEstimate:
    """Seconds of a build; transfers run beside the arithmetic, so the longer of the two counts."""

    compute_s: float
    transfer_s: float
    start_s: float

    @property
    def total_s(self) -> float:
        """From the start to the commit."""
        return self.start_s + max(self.compute_s, self.transfer_s)


def estimate_time(plan: Plan, device: Device, *, num_workers: int, spools: bool) -> TimeEstimate:
    """What a plan takes on `num_workers` of a device, all of them busy to the end but for the layers' bases."""
    cost = estimate(plan, spools=spools)
    layers = max(1, len(plan.kept_layers))
    basis_s = cost.eigh_flops / layers / device.fp64_flops * math.ceil(layers / num_workers)
    compute_s = (cost.row_flops + cost.codes_flops) / device.row_flops + cost.gram_flops / device.fp64_flops
    moved = cost.read_bytes + cost.table_bytes + cost.document_bytes + 2 * cost.partial_bytes
    return TimeEstimate(
        compute_s=compute_s / num_workers + basis_s,
        transfer_s=moved / device.transfer_bytes_per_s / num_workers,
        start_s=device.start_s,
    )


def describe_time(plan: Plan, device: Device, *, num_workers: int, spools: bool) -> str:
    """The estimate in two lines, with where the device's figures come from."""
    time = estimate_time(plan, device, num_workers=num_workers, spools=spools)
    price = "no price is known"
    if device.dollars_per_hour is not None:
        dollars = time.total_s / 3600 * num_workers * device.dollars_per_hour
        price = f"{dollars:,.2f} dollars at {device.dollars_per_hour:g} an hour each"
    workers = f"{num_workers} worker{'s' if num_workers > 1 else ''}"
    return (
        f"  time      {duration(time.total_s)} on {workers} of {device.name}: arithmetic {duration(time.compute_s)}, "
        f"beside it transfers {duration(time.transfer_s)}, start {duration(time.start_s)}; {price}\n"
        f"  device    {device.source or 'as described'}"
    )
