"""The replicas as one `CompletionEngine`: requests go to the least busy one, and once more if it is lost in time."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tolserve.async_engine import Mailbox, Work, aborted
from tolserve.engine.request import RequestOutput
from tolserve.link.client import ReplicaLink
from tolserve.link.protocol import RemoteError

_log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 5.0

SILENCE_S = 10.0
"""A replica speaks twice a second even when it has nothing to say; one that has not for so long is frozen."""

_LEAST_DEADLINE_S = 1e-6
"""What is given as left of a deadline that has passed: the engine then says so."""

Address = tuple[str, int]


class _Generation:
    """One generation: where it runs, whether anything of it came, whether it was tried again."""

    def __init__(self, fleet: Fleet, mailbox: Mailbox, index: int, work: Work, *, stream: bool) -> None:
        self._fleet = fleet
        self._mailbox = mailbox
        self._index = index
        self._work = work
        self._began = time.monotonic()
        self._stream = stream
        self._link: ReplicaLink | None = None
        self._wire_id = 0
        self._started = False
        self._retried = False
        self._timer: asyncio.TimerHandle | None = None
        self.finished = False

    def start(self) -> None:
        """Run on the least busy replica; wait for one, up to the fleet's deadline, where there is none."""
        self._link = self._fleet.least_busy()
        if self._link is None:
            self._fleet.waiting.append(self)
            self._timer = asyncio.get_running_loop().call_later(self._fleet.deadline_s, self._expire)
            return
        self._wire_id = self._link.submit(self._work_left(), self._take, stream=self._stream)

    def _work_left(self) -> Work:
        """The work with what is left of its deadline, of which waiting and a lost replica have taken some."""
        prompt, params = self._work
        if params.deadline_s is None:
            return self._work
        left_s = params.deadline_s - (time.monotonic() - self._began)
        return prompt, replace(params, deadline_s=max(left_s, _LEAST_DEADLINE_S))

    def resume(self) -> None:
        """Start again, now that there is a replica."""
        if self._timer is not None:
            self._timer.cancel()
        if not self.finished:
            self.start()

    def cancel(self) -> None:
        """End it wherever it is."""
        if self.finished:
            return
        if self._link is not None:
            self._link.cancel(self._wire_id)
        elif self in self._fleet.waiting:
            self._fleet.waiting.remove(self)
        self._put(aborted(""))

    def _take(self, output: RequestOutput | None) -> None:
        if output is not None:
            self._started = True
            self._put(output)
        elif self._started or self._retried:
            name = self._link.name if self._link else "?"
            self._put(aborted("", RemoteError("unavailable", f"attention replica {name} was lost; please try again")))
        else:
            self._retried = True
            self.start()

    def _expire(self) -> None:
        self._fleet.waiting.remove(self)
        text = f"no attention replica came up within {self._fleet.deadline_s:g} s; please try again later"
        self._put(aborted("", RemoteError("unavailable", text)))

    def _put(self, output: RequestOutput) -> None:
        if self.finished:
            return
        self.finished = output.finished
        if self.finished and self._timer is not None:
            self._timer.cancel()
        self._mailbox.put(self._index, output)


class FleetSubmission:
    """The generations of one request on a fleet."""

    def __init__(self, mailbox: Mailbox, generations: list[_Generation]) -> None:
        self._mailbox = mailbox
        self._generations = generations

    async def next(self) -> list[tuple[int, RequestOutput]]:
        """See `tolserve.async_engine.Submission`."""
        return await self._mailbox.get()

    def cancel(self) -> None:
        """See `tolserve.async_engine.Submission`."""
        for generation in self._generations:
            generation.cancel()


class Fleet:
    """A `CompletionEngine` over the attention replicas that `update` names; used on one event loop.

    A generation whose replica is lost before anything of it arrived is started once more; one that has streamed, or
    is lost twice, fails. Where no replica is there, generations wait up to `deadline_s`.
    """

    def __init__(self, *, deadline_s: float) -> None:
        self.deadline_s = deadline_s
        self.waiting: list[_Generation] = []
        self._links: dict[str, ReplicaLink] = {}
        self._connecting: set[str] = set()

    def submit(self, works: Sequence[Work], *, stream: bool) -> FleetSubmission:
        """See `CompletionEngine`; without `stream` the replica sends one output a generation."""
        mailbox = Mailbox()
        generations = [_Generation(self, mailbox, i, work, stream=stream) for i, work in enumerate(works)]
        for generation in generations:
            generation.start()
        return FleetSubmission(mailbox, generations)

    def stats(self) -> dict[str, dict[str, Any]]:
        """See `CompletionEngine`."""
        return {name: link.stats for name, link in self._links.items()}

    def ready(self) -> bool:
        """Whether there is a replica."""
        return bool(self._links)

    def least_busy(self) -> ReplicaLink | None:
        """The connected replica with the fewest open generations."""
        return min(self._links.values(), key=lambda link: link.num_open, default=None)

    async def update(self, addresses: Mapping[str, Address]) -> None:
        """Connect to the replicas that are new in `addresses`, and drop those from which nothing comes any more.

        A replica that is not in `addresses` is kept while it talks: a directory that has just started knows few.
        """
        for link in list(self._links.values()):
            if link.silent_s > SILENCE_S:
                _log.warning("attention replica %s is silent for %.1f s and is dropped", link.name, link.silent_s)
                link.close()
        new = [name for name in addresses if name not in self._links and name not in self._connecting]
        await asyncio.gather(*(self._connect(name, addresses[name]) for name in new))

    def close(self) -> None:
        """Cut every link."""
        for link in list(self._links.values()):
            link.close()

    async def _connect(self, name: str, address: Address) -> None:
        self._connecting.add(name)
        link = None
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                loop = asyncio.get_running_loop()
                _, link = await loop.create_connection(lambda: ReplicaLink(name, self._lost), *address)
                await link.greeted
        except (OSError, TimeoutError) as error:
            _log.warning("attention replica %s at %s:%d cannot be reached: %s", name, *address, error)
            if link is not None:
                link.close()
            return
        finally:
            self._connecting.discard(name)
        self._links[name] = link
        waiting, self.waiting = self.waiting, []
        for generation in waiting:
            generation.resume()

    def _lost(self, link: ReplicaLink) -> None:
        if self._links.get(link.name) is link:
            del self._links[link.name]
