"""One build in a process of its own, which reports its anonymous memory after its imports and at its peak.

Called as `python -m tolbuild.bench.worker_memory CHECKPOINT TABLE RANK DEVICE`.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Self

from tolbuild.build_config import BuildConfig
from tolbuild.drive.driver import build_table

INTERVAL_S = 0.002


def anonymous_bytes() -> int:
    """Memory of this process that no file backs, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


class Watcher:
    """Samples this process's anonymous memory from a thread and keeps the largest value."""

    def __init__(self) -> None:
        self.peak_bytes = anonymous_bytes()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(INTERVAL_S):
            self.peak_bytes = max(self.peak_bytes, anonymous_bytes())


def main(checkpoint: str, table: str, rank: str, device: str) -> None:
    """Build and print one line of JSON: `imports_bytes` and `peak_bytes`."""
    imports_bytes = anonymous_bytes()
    config = BuildConfig(
        checkpoint=checkpoint,
        table=table,
        rank=int(rank),
        codes="int8",
        workers=1,
        device="cuda" if device == "cuda" else "cpu",
    )
    with Watcher() as watcher:
        build_table(config)
    print(json.dumps({"imports_bytes": imports_bytes, "peak_bytes": watcher.peak_bytes}))


if __name__ == "__main__":
    main(*sys.argv[1:])
