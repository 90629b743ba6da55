"""Several table versions in one memory node: each request names its own, by identity, and gets rows of no other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tolbuild.table.manifest import Manifest
from tolserve.memory.service import RowService, Served, ServedCounters
from tolserve.memory.spec import Rows
from tolserve.memory.store import RamStore, RowStore
from tolserve.memory.store_node import StoreBackedRows, StoreService
from tolserve.transport.errors import RefusedError
from tolserve.transport.frames import Hello, Ids32, RequestHeader, Status
from tolserve.transport.lanes import Lanes
from tolserve.transport.session import Answer, Later


@dataclass(frozen=True, kw_only=True)
class Held:
    """One version that a node holds."""

    manifest: Manifest
    store: RowStore

    def shared_with(self, other: Manifest) -> dict[int, Rows]:
        """Rows by band, of those bands that are the same objects in another version, where they are in memory."""
        if not isinstance(self.store, RamStore):
            return {}
        pairs = zip(self.manifest.bands, other.bands, strict=False)
        return {new.index: self.store.bands[old.index] for old, new in pairs if old.codes == new.codes}


def make_service(store: RowStore, *, max_ids: int, counts: Served | None = None) -> RowService:
    """What answers requests for the rows of one version."""
    if isinstance(store, StoreBackedRows):
        return StoreService(store, max_ids=max_ids, counts=counts)
    return RowService(store, max_ids=max_ids, counts=counts)


class VersionedService:
    """A `Responder` over any number of versions. One thread asks it; another may add and remove."""

    def __init__(self, *, max_ids: int) -> None:
        self.max_ids = max_ids
        self._counts = Served()
        self._services: Mapping[bytes, RowService] = {}

    @property
    def served(self) -> ServedCounters:
        """What all of them together have served, those that are gone too."""
        return self._counts.total()

    def add(self, store: RowStore) -> None:
        """Serve a store's version too."""
        service = make_service(store, max_ids=self.max_ids, counts=self._counts)
        self._services = {**self._services, store.spec.identity: service}
        for lanes in self._counts.lanes:
            _hold(lanes, service)

    def remove(self, identity: bytes) -> None:
        """Serve a version no more; an answer that has begun is still sent."""
        self._services = {known: service for known, service in self._services.items() if known != identity}
        for lanes in self._counts.lanes:
            lanes.withdraw(identity)

    def share(self, lanes: Lanes) -> bool:
        """See `tolserve.transport.lanes.Sharing`: versions in memory, those that come later too."""
        held = [_hold(lanes, service) for service in self._services.values()]
        if not any(held):
            return False
        self._counts.lanes.append(lanes)
        return True

    def hello(self, identity: bytes) -> Hello:
        """See `Responder.hello`."""
        return self._service(identity).hello(identity)

    def rows(self, header: RequestHeader, ids: Ids32) -> Answer | Later:
        """See `Responder.rows`."""
        return self._service(header.identity).rows(header, ids)

    def refused(self, status: Status) -> None:
        """See `Responder.refused`."""
        name = status.name.lower()
        refused = self._counts.own.refused
        refused[name] = refused.get(name, 0) + 1

    def _service(self, identity: bytes) -> RowService:
        service = self._services.get(identity)
        if service is None:
            held = ", ".join(known.hex() for known in self._services) or "none"
            raise RefusedError(
                Status.WRONG_IDENTITY, f"this node holds table version {held}; the request is for {identity.hex()}"
            )
        return service


def _hold(lanes: Lanes, service: RowService) -> bool:
    """Let lanes answer for a version whose rows are in memory; whether they do."""
    memory = service.row_memory()
    return memory is not None and lanes.hold(**vars(memory))
