"""What can go wrong with a table, a store or a peer, one class for each thing that a caller would do about it."""

from __future__ import annotations

from collections.abc import Sequence


class ToLError(Exception):
    """Any fault of a table, a store or the network; a caller's wrong value is a ValueError instead."""


class StoreError(ToLError):
    """A store refused or failed: no permission, no bucket, no space, no answer."""


class ObjectNotFoundError(StoreError):
    """The store is there, the object is not."""


class ObjectExistsError(ToLError):
    """A put-if-absent met an object of that name."""


class TableNotFoundError(ToLError):
    """There is no published version at the place, or not the one asked for."""


class TableConflictError(ToLError):
    """The place holds a table of another checkpoint or other options, or another writer took the version number."""


class FormatError(ToLError):
    """A document is not of this format, or of a version that this reader does not know."""


class IdentityError(ToLError):
    """A peer holds another table version, or a place another checkpoint, than the one named."""


class TableCorruptError(ToLError):
    """Bytes are not what their checksum says; `objects` names each object at fault."""

    def __init__(self, message: str, objects: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.objects = tuple(objects)
