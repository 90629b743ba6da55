"""Names of processes that hold over time: which machine a process id means something on, and whether it lives there."""

from __future__ import annotations

import contextlib
import os
from functools import cache
from pathlib import Path


@cache
def machine_name() -> str:
    """Boot and process namespace of this machine: where a process id means one process. Empty if it does not say."""
    with contextlib.suppress(OSError):
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    return ""


def start_ticks(pid: int) -> int:
    """Start of a process, in ticks since boot; 0 where there is none, or one that has ended and waits to be reaped."""
    with contextlib.suppress(OSError):
        state, *numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return 0 if state in "ZX" else int(numbers[18])
    return 0
