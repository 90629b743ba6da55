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


class _Pin:
    """The edition that the generations of one request are computed with, the same for all of them.

    A single generation of which nothing has come may still go to another, where its own is nowhere any more.
    """

    def __init__(self, fleet: Fleet, count: int) -> None:
        self._fleet = fleet
        self._single = count == 1
        self.num_open = count
        self.edition = fleet.edition

    def link(self) -> ReplicaLink | None:
        """The replica for the next generation of the request to begin; None where there is none."""
        self.edition = self.edition or self._fleet.edition
        link = self._fleet.least_busy(self.edition)
        if link is None and self._single:
            link = self._fleet.least_busy(self._fleet.edition)
            self.edition = self._fleet.edition if link else self.edition
        return link


class _Generation:
    """One generation: where it runs, whether anything of it came, whether it was tried again."""

    def __init__(self, fleet: Fleet, pin: _Pin, mailbox: Mailbox, index: int, work: Work, *, stream: bool) -> None:
        self._fleet = fleet
        self._pin = pin
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
        self._link = self._pin.link()
        if self._link is None:
            self._fleet.waiting.append(self)
            self._timer = asyncio.get_running_loop().call_later(self._fleet.deadline_s, self._expire)
            return
        self._wire_id = self._link.submit(self._work_left(), self._take, stream=self._stream, edition=self._pin.edition)

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
        if self.finished:
            self._fleet.ended(self._pin)
            if self._timer is not None:
                self._timer.cancel()
        self._mailbox.put(self._index, output)


class FleetSubmission:
    """The generations of one request on a fleet."""

    def __init__(self, fleet: Fleet, pin: _Pin, mailbox: Mailbox, generations: list[_Generation]) -> None:
        self._fleet = fleet
        self._pin = pin
        self._mailbox = mailbox
        self._generations = generations

    @property
    def fingerprint(self) -> str:
        """See `tolserve.async_engine.Submission`."""
        return self._fleet.fingerprint(self._pin.edition)

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
    is lost twice, fails. Where no replica is there, generations wait up to `deadline_s`. Replicas may have several
    editions of the table: `serve` says which one new requests get.
    """

    def __init__(self, *, deadline_s: float) -> None:
        self.deadline_s = deadline_s
        self.waiting: list[_Generation] = []
        self.edition = ""
        self._wanted = ""
        self._pins: set[_Pin] = set()
        self._fingerprints: dict[str, str] = {}
        self._links: dict[str, ReplicaLink] = {}
        self._connecting: set[str] = set()

    def submit(self, works: Sequence[Work], *, stream: bool) -> FleetSubmission:
        """See `CompletionEngine`; without `stream` the replica sends one output a generation."""
        mailbox, pin = Mailbox(), _Pin(self, len(works))
        self._pins.add(pin)
        generations = [_Generation(self, pin, mailbox, i, work, stream=stream) for i, work in enumerate(works)]
        for generation in generations:
            generation.start()
        return FleetSubmission(self, pin, mailbox, generations)

    def serve(self, edition: str) -> None:
        """Give new requests this edition, from when a replica has it on."""
        self._wanted = edition
        self._choose()

    def in_use(self) -> set[str]:
        """Keys of the editions that new requests get or open ones have."""
        return {self.edition, *(pin.edition for pin in self._pins)}

    def fingerprint(self, edition: str) -> str:
        """What answers name an edition by; empty where no replica told."""
        return self._fingerprints.get(edition, "")

    def ended(self, pin: _Pin) -> None:
        """One of a request's generations has finished."""
        pin.num_open -= 1
        if pin.num_open == 0:
            self._pins.discard(pin)

    def stats(self) -> dict[str, dict[str, Any]]:
        """See `CompletionEngine`."""
        return {name: link.stats for name, link in self._links.items()}

    def ready(self) -> bool:
        """Whether there is a replica."""
        return bool(self._links)

    def least_busy(self, edition: str) -> ReplicaLink | None:
        """The connected replica with the fewest open generations, of those that have an edition ("": of all)."""
        able = [
            link for link in self._links.values() if not link.draining and (not edition or edition in link.editions)
        ]
        return min(able, key=lambda link: link.num_open, default=None)

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
                _, link = await loop.create_connection(lambda: ReplicaLink(name, self._lost, self._learn), *address)
                await link.greeted
        except (OSError, TimeoutError) as error:
            _log.warning("attention replica %s at %s:%d cannot be reached: %s", name, *address, error)
            if link is not None:
                link.close()
            return
        finally:
            self._connecting.discard(name)
        self._links[name] = link
        self._learn(link)

    def _learn(self, link: ReplicaLink) -> None:
        """A replica is new or has other editions than before: requests that had none go on."""
        self._fingerprints |= link.editions
        if self._links.get(link.name) is not link:
            return
        self._choose()
        waiting, self.waiting = self.waiting, []
        for generation in waiting:
            generation.resume()

    def _choose(self) -> None:
        if any(self._wanted in link.editions for link in self._links.values()):
            self.edition = self._wanted

    def _lost(self, link: ReplicaLink) -> None:
        if self._links.get(link.name) is link:
            del self._links[link.name]
