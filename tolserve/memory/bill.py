"""What one request for rows cost."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(kw_only=True, slots=True)
class MemoryBill:
    """Figures of one handle, filled while it lives.

    Attributes:
        rows_needed: rows asked for, an id as often as it occurs.
        rows_unique: distinct ones among them.
        hits_by_tier: rows asked for by where they were found: "device", "cache", "flight" (already being fetched),
            "host", "table", "remote", "store".
        bytes_moved: bytes that were received or read for it; those of rows in the host's memory are not among them.
        fetch_ms: from the request until its user took the last band, which may have come long before.
        stall_ms: time that its user waited in `arrive` or `wait`.
    """

    rows_needed: int = 0
    rows_unique: int = 0
    hits_by_tier: dict[str, int] = field(default_factory=dict)
    bytes_moved: int = 0
    fetch_ms: float = 0.0
    stall_ms: float = 0.0
