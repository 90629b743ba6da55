"""Faults of a link and of what is said on it."""

from __future__ import annotations

from tolbuild.table.errors import StoreError, ToLError


class LinkError(StoreError):
    """A peer cannot be reached, has closed the connection, or is silent."""


class ProtocolError(ToLError):
    """Bytes that are not this protocol, or not this version of it."""


class RefusedError(ToLError):
    """A peer understood a request and refused it; `status` says why, see `tolserve.transport.frames.Status`."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class SecurityError(ToLError):
    """A certificate, key or token cannot be used; the message names its file."""
