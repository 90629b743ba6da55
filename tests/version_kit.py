"""What tests of live versions share: a table of several versions, what each must answer, and clients that check it."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from serve_kit import NUM_POSITIONS, byte_tokenizer, make_served_checkpoint, wait_until

from tolbuild.build_config import BuildConfig
from tolbuild.drive.driver import build_table
from tolbuild.table import open_table
from tolserve.engine.config import EngineConfig
from tolserve.engine.load import build_engine
from tolserve.engine.request import SamplingParams
from tolserve.memory.cached import CachedSource
from tolserve.memory.device_table import DeviceTable
from tolserve.memory.loading import TableStore
from tolserve.memory.local import StoreFetcher

PROMPTS = [list(range(5 + 40 * index, 30 + 40 * index)) for index in range(4)]
NUM_TOKENS = 30


def build_version(checkpoint: str, table: str, **options: Any) -> None:
    """Publish one more version; shards of 128 tokens, 2 bands of 2 layers."""
    settings = {"layers_per_band": 2, "shard_rows": 128, "no_ray": True, "workers": 1, "new_version": True}
    build_table(BuildConfig(checkpoint=checkpoint, table=table, **settings, **options))


@dataclass(frozen=True)
class Versions:
    """A table whose versions 1 (fp32) and 2 (int8 at a low rank) answer differently, and 3, which is as 1."""

    checkpoint: str
    table: str

    @classmethod
    def make(cls, folder: Path) -> Versions:
        """Build it under `folder`."""
        made = cls(make_served_checkpoint(folder / "letters"), str(folder / "table"))
        for options in ({"codes": "fp32"}, {"codes": "int8", "rank": 8}, {"codes": "fp32"}):
            build_version(made.checkpoint, made.table, **options)
        return made

    @cached_property
    def texts(self) -> dict[str, list[str]]:
        """By fingerprint what each of PROMPTS is answered with, as one engine computes it alone from that version."""
        return {self.fingerprint(version): self._texts(version) for version in (1, 2, 3)}

    def fingerprint(self, version: int) -> str:
        """What answers of a version name it by."""
        with open_table(self.table, version=version) as table:
            return f"v{version}-{table.manifest.identity.hex()[:16]}"

    def _texts(self, version: int) -> list[str]:
        with open_table(self.table, version=version) as table:
            rows = DeviceTable.load(CachedSource(StoreFetcher(TableStore(table))))
            engine = build_engine(self.checkpoint, rows, EngineConfig(max_model_len=NUM_POSITIONS), table=table)
        for index, prompt in enumerate(PROMPTS):
            greedy = SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0, ignore_eos=True)
            engine.add_request(str(index), prompt, greedy)
        ids: dict[str, list[int]] = {}
        while engine.has_work():
            for output in engine.step():
                ids.setdefault(output.request_id, []).extend(token.token_id for token in output.tokens)
        return [byte_tokenizer().decode(ids[str(index)], skip_special_tokens=False) for index in range(len(PROMPTS))]


@dataclass
class CheckedLoad:
    """Clients that ask again and again, plainly and streamed, all prompts at once and one at a time.

    Attributes:
        seen: answers by fingerprint.
        wrong: what was not 200, or not the text of the version that it names.
    """

    url: str
    texts: Mapping[str, Sequence[str]]
    clients: int
    seen: dict[str, int] = field(default_factory=dict)
    wrong: list[Any] = field(default_factory=list)

    def __enter__(self) -> CheckedLoad:
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(seed,)) for seed in range(self.clients)]
        for thread in self._threads:
            thread.start()
        wait_until(lambda: self.num_done >= self.clients or bool(self.wrong))
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    @property
    def num_done(self) -> int:
        """Answers so far."""
        return sum(self.seen.values())

    def await_more(self, fingerprint: str, count: int = 6) -> None:
        """Return when so many more answers have named a version, or one was wrong."""
        target = self.seen.get(fingerprint, 0) + count
        wait_until(lambda: self.seen.get(fingerprint, 0) >= target or bool(self.wrong))

    def _run(self, turn: int) -> None:
        while not self._stop.is_set():
            turn += 1
            chosen = list(range(len(PROMPTS))) if turn % 3 == 0 else [turn % len(PROMPTS)]
            try:
                header, named, texts = ask(self.url, [PROMPTS[i] for i in chosen], stream=turn % 2 == 0)
            except (OSError, ValueError, KeyError) as error:
                said = error.read() if isinstance(error, urllib.error.HTTPError) else b""
                self.wrong.append((repr(error), said))
                continue
            (name,) = named if len(named) == 1 else ("",)
            if name != header or texts != [self.texts.get(name, {})[i] for i in chosen]:
                self.wrong.append((header, named, texts))
            self.seen[name] = self.seen.get(name, 0) + 1


def ask(url: str, prompts: list[list[int]], *, stream: bool) -> tuple[str | None, set[str], list[str]]:
    """Header, system_fingerprints and texts of one answer."""
    body = {"model": "letters", "prompt": prompts, "max_tokens": NUM_TOKENS, "temperature": 0, "ignore_eos": True}
    request = urllib.request.Request(f"{url}/completions", json.dumps({**body, "stream": stream}).encode())
    texts = [""] * len(prompts)
    named = set()
    with urllib.request.urlopen(request, timeout=90) as answer:
        header = answer.headers["x-table-version"]
        if not stream:
            whole = json.loads(answer.read())
            return header, {whole["system_fingerprint"]}, [choice["text"] for choice in whole["choices"]]
        for line in answer:
            text = line.decode().removeprefix("data: ").strip()
            if text and text != "[DONE]":
                event = json.loads(text)
                named.add(event["system_fingerprint"])
                for choice in event["choices"]:
                    texts[choice["index"]] += choice["text"]
    return header, named, texts
