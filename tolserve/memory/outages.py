"""Since when a partition has had nobody to ask: what every fetch counts its patience from."""

from __future__ import annotations

import time


class Outages:
    """Partitions without a node, by when that began. The client's thread uses it.

    An outage ends when rows come, not when a node connects: one that greets and then sends nothing would start the
    count anew for each fetch.
    """

    def __init__(self) -> None:
        self._since: dict[int, float] = {}

    def begin(self, partition: int) -> None:
        """No node of the partition is up; changes nothing where that is known."""
        if partition not in self._since:
            self._since[partition] = time.monotonic()

    def end(self, partition: int) -> None:
        """The partition has a node that works."""
        if self._since:
            self._since.pop(partition, None)

    def lasted_s(self, partition: int, now: float) -> float:
        """Seconds of the present outage; 0 where there is none."""
        return now - self._since.get(partition, now)
