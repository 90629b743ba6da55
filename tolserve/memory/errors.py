"""Faults of the row path; each is what a caller would treat differently."""

from __future__ import annotations

from tolbuild.table.errors import StoreError, ToLError


class NodesUnavailableError(StoreError):
    """No node of a partition answered before the deadline; trying again later can succeed."""


class RowRequestError(ToLError):
    """A memory node refused a request for what it asks: ids it does not hold, bands it does not know, too many."""


class StagingFullError(ToLError):
    """The staging budget is taken by requests that have not been released; release some, or give it more rows."""
