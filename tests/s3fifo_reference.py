"""S3-FIFO as its paper tells it, one id at a time: what the policy that works on whole steps is held against."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable


class PlainS3FIFO:
    """Algorithm 1 of Yang et al., SOSP 2023; a small queue that fills before the cache does overflows into the main one
    (libCacheSim, S3FIFO.c).
    """

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self.num_small = max(1, num_slots // 10)
        self.small: deque[int] = deque()
        self.main: deque[int] = deque()
        self.ghosts: OrderedDict[int, None] = OrderedDict()
        self.uses: dict[int, int] = {}

    def step(self, ids: Iterable[int]) -> int:
        """Use distinct ids, those that are in before those that are not; how many were in."""
        missing = []
        for token in ids:
            if token in self.uses:
                self.uses[token] = min(3, self.uses[token] + 1)
            else:
                missing.append(token)
        hits = len(list(ids)) - len(missing)
        for token in missing:
            self._insert(token)
        return hits

    def _insert(self, token: int) -> None:
        full = len(self.uses) == self.num_slots
        while len(self.uses) >= self.num_slots:
            if len(self.small) >= self.num_small or not self.main:
                self._evict_small()
            else:
                self._evict_main()
        if token in self.ghosts:
            del self.ghosts[token]
            self.main.append(token)
        elif not full and len(self.small) >= self.num_small:
            self.main.append(token)
        else:
            self.small.append(token)
        self.uses[token] = 0

    def _evict_small(self) -> None:
        while self.small:
            token = self.small.popleft()
            if self.uses[token] > 1:
                self.uses[token] = 0
                self.main.append(token)
            else:
                del self.uses[token]
                self.ghosts[token] = None
                if len(self.ghosts) > self.num_slots - self.num_small:
                    self.ghosts.popitem(last=False)
                return

    def _evict_main(self) -> None:
        while True:
            token = self.main.popleft()
            if self.uses[token] == 0:
                del self.uses[token]
                return
            self.uses[token] -= 1
            self.main.append(token)
