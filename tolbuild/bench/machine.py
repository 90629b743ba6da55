"""Where a measurement comes from: the machine, the versions, the command."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterable
from pathlib import Path

import torch

PACKAGES = ("torch", "numpy", "pyarrow", "safetensors", "ray", "zarr", "obstore", "s3fs", "tokenizers", "transformers")


def describe(device: torch.device, seed: int, command: str) -> dict[str, object]:
    """What a committed result has to carry with it."""
    return {
        "machine": {
            "cpu": _cpu_model(),
            "cores": len(os.sched_getaffinity(0)),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "kernel": f"{platform.system()} {platform.release()}",
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "load_average": list(os.getloadavg()),
        },
        "versions": {"python": platform.python_version()} | versions(PACKAGES),
        "seed": seed,
        "command": command,
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of those packages that are installed."""
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
