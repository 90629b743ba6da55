"""Where a build's words go: lines for people, or one JSON object a line for programs (`--log-json`)."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TextIO


@dataclass(frozen=True, kw_only=True)
class Voice:
    """Says things on a stream, standard error unless told otherwise."""

    as_json: bool = False
    stream: TextIO = field(default_factory=lambda: sys.stderr)

    @property
    def wants_bar(self) -> bool:
        """Whether somebody looks on who would like a bar."""
        return not self.as_json and self.stream.isatty()

    def say(self, text: str) -> None:
        """A sentence: a line, or an event `message` with the field `text`."""
        if self.as_json:
            self.event("message", text=text)
        else:
            print(text, file=self.stream, flush=True)

    def event(self, name: str, **fields: object) -> None:
        """One JSON object with `time` (ISO, UTC), `event` and the fields; nothing where people read."""
        if self.as_json:
            time = datetime.now(UTC).isoformat(timespec="milliseconds")
            print(json.dumps({"time": time, "event": name, **fields}), file=self.stream, flush=True)
