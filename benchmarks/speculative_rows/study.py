"""Whether guessing the next tokens early pays: how often guesses hit, what they save and cost at GPU pace.

    python benchmarks/speculative_rows/study.py --out benchmarks/speculative_rows/result.json

Run from the root of the repository; see README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from tolbuild.bench.machine import describe
from tolbuild.checkpoint import load_model, open_checkpoint
from tolbuild.count import count
from tolbuild.evaluate.text import pack
from tolbuild.model import MemoryLLM
from tolbuild.train.data import read_texts
from tolserve.bench.paced import PacedEngine, StepTime
from tolserve.bench.paced_rows import NODE_SPIN_US, Regime, device_source
from tolserve.bench.peers import node_description, own_cores, peer
from tolserve.bench.report import estimate
from tolserve.bench.streams import TokenStream
from tolserve.engine.rows import RowFeed, StepRows
from tolserve.memory.cached import CachedSource
from tolserve.memory.spec import RowSpec

IntArray = NDArray[np.int64]

NUM_GUESSES = (1, 2, 4, 8, 16)
CACHED = (0.0, 0.05, 0.1, 0.25)
"""Shares of the vocabulary, the most frequent tokens of the training text, that are on the device."""
EXIT_BAND = 2
"""The paced engine's segment behind which the estimate is made: half of its 24 layers."""
CONTESTANTS = {"no guess": 0, "k1": 1, "k4": 4, "k8": 8, "told": None}
"""Guesses a sequence; None is told the token that comes, which bounds what any estimate can save."""
WARM_STEPS = 20


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Real text and what was guessed of it.

    Attributes:
        tokens: [T + 1] of the text.
        guesses: by estimate [T, 16], the likeliest first: row t guesses token t + 1 from the tokens up to t.
        counts: [V], occurrences in the training text.
    """

    tokens: IntArray
    guesses: dict[str, IntArray]
    counts: IntArray


@torch.inference_mode()
def make_trace(checkpoint_url: str, folder: Path, *, num_windows: int, num_documents: int) -> Trace:
    """Windows of the validation text, and what `window_guesses` makes of each."""
    checkpoint = open_checkpoint(checkpoint_url)
    model, length = load_model(checkpoint), checkpoint.config.max_position_embeddings
    train = islice(read_texts([folder / "public_domain.train.jsonl.gz"]), num_documents)
    counts = count(checkpoint.tokenizer(), train, checkpoint.config.vocab_size)
    ids = pack(checkpoint.tokenizer(), read_texts([folder / "public_domain.valid.jsonl.gz"])).ids_N
    starts = np.linspace(0, len(ids) - length - 1, num_windows).astype(np.int64)
    found: dict[str, list[IntArray]] = {}
    tokens = []
    for start in starts:
        window = torch.from_numpy(ids[start : start + length])
        for name, guess in window_guesses(model, window).items():
            found.setdefault(name, []).append(guess)
        tokens.append(ids[start : start + length - 1])
    # Of each window the last token has a guess and no successor in the trace: it is left out of both.
    return Trace(
        tokens=np.concatenate([*tokens, ids[:1]]),
        guesses={name: np.concatenate([guess[:-1] for guess in parts]) for name, parts in found.items()},
        counts=counts,
    )


def window_guesses(model: MemoryLLM, window_S: Tensor) -> dict[str, IntArray]:
    """The 16 likeliest next tokens [S, 16] by every estimate, given a window's tokens so far."""
    streams: list[Tensor] = []
    hooks = [layer.register_forward_hook(lambda _, __, out: streams.append(out[0])) for layer in model.model.layers]
    model.hidden(window_S[None])
    for hook in hooks:
        hook.remove()
    guesses = {}
    for index, x_SD in enumerate(streams):
        logits_SV = F.linear(model.model.norm(x_SD), model.head_VD)
        guesses[f"behind layer {index + 1} of {len(streams)}"] = logits_SV.topk(max(NUM_GUESSES)).indices.numpy()
    last = guesses[f"behind layer {len(streams)} of {len(streams)}"]
    guesses["logits of the step before"] = np.concatenate([last[:1], last[:-1]])
    return guesses


def hit_shares(trace: Trace) -> dict[str, Any]:
    """By estimate, share on the device and k: next tokens that are absent, guessed among them, rows fetched for it.

    `found`: share of absent next tokens that were guessed. `rows_a_hit`: absent rows requested for each of them.
    """
    following = trace.tokens[1:]
    rank = np.empty(len(trace.counts), np.int64)
    rank[np.argsort(-trace.counts, kind="stable")] = np.arange(len(trace.counts))
    out: dict[str, Any] = {}
    for name, guesses in trace.guesses.items():
        for share in CACHED:
            is_absent = rank >= share * len(trace.counts)
            wanted = is_absent[following]
            figures: dict[str, Any] = {"absent": round(float(wanted.mean()), 4)}
            for num in NUM_GUESSES:
                hits = (guesses[:, :num] == following[:, None]).any(1) & wanted
                asked = int(is_absent[guesses[:, :num]].sum())
                figures[f"k{num}"] = {
                    "found": round(float(hits.sum() / wanted.sum()), 4),
                    "rows_a_hit": round(asked / max(1, int(hits.sum())), 1),
                    "rows_a_step": round(asked / len(following), 3),
                }
            out.setdefault(name, {})[f"{share:g} on the device"] = figures
    return out


class GuessingEngine(PacedEngine):
    """A paced engine that asks for guessed rows when its device has ended the segment of `EXIT_BAND`.

    `guesses` is [steps, batch, k], the last axis empty for none. The estimate itself takes no time: its price on a
    device, one more product with the head, is to be added.
    """

    def __init__(self, tokens: IntArray, guesses: IntArray, **settings: Any) -> None:
        self._guesses = iter(guesses)
        super().__init__(tokens, **settings)

    def _run_segments(self, feed: RowFeed, rows: StepRows, begin: float) -> float:
        end = begin
        for band, segment_s in enumerate(self._segments_s):
            if band in self._bands:
                feed.wait(rows, band)
                end = max(end, time.perf_counter())
            end += segment_s
            if band == EXIT_BAND:
                ids = next(self._guesses).ravel()
                if len(ids):
                    while time.perf_counter() < end:
                        pass
                    feed.guess(ids)
        return end


def measure_paced(
    trace: Trace, estimate_name: str, sources: dict[str, CachedSource], regime: Regime, num_steps: int
) -> dict[str, Any]:
    """Overhead over rows that are all on the device, by contestant; all take turns, step by step.

    `sources` has one for each of `CONTESTANTS`: what one has fetched is of no use to the others.
    """
    batch, spec = regime.batch, sources["no guess"].spec
    starts = np.arange(batch) * ((len(trace.tokens) - 1) // batch)
    places = (starts + np.arange(num_steps)[:, None]) % (len(trace.tokens) - 2)
    tokens, following = trace.tokens[places], trace.tokens[places + 1]
    guesses = trace.guesses[estimate_name][places]
    num_layers = tuple(len(band.layers) for band in spec.bands)
    settings = {"pace_s": regime.pace_us * 1e-6, "num_layers": num_layers}
    bands = tuple(range(regime.pinned_bands, len(spec.bands)))
    contestants: dict[str, PacedEngine] = {"local": PacedEngine(tokens, **settings)}
    for name, num in CONTESTANTS.items():
        asked = following[:, :, None] if num is None else guesses[:, :, :num]
        contestants[name] = GuessingEngine(tokens, asked, source=sources[name], bands=bands, **settings)
    steps: dict[str, list[StepTime]] = {name: [] for name in contestants}
    names = list(contestants)
    for turn in range(num_steps):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            steps[name].append(contestants[name].step())
    for engine in contestants.values():
        engine.close()
    ideal_s = regime.pace_us * 1e-6 * sum(num_layers)
    local = steps.pop("local")[WARM_STEPS:]
    found = {}
    for name, own in steps.items():
        extra = [(one.step_s - other.step_s) / ideal_s for one, other in zip(own[WARM_STEPS:], local, strict=True)]
        overhead = estimate(extra)
        found[name] = {
            "overhead": round(overhead.mean, 4),
            "interval": [round(overhead.low, 4), round(overhead.high, 4)],
            "median": round(overhead.median, 4),
            "bytes_a_step": round(float(np.mean([one.bytes_moved for one in own[WARM_STEPS:]]))),
        }
    return found


def paced(trace: Trace, estimate_name: str, *, num_steps: int) -> dict[str, Any]:
    """`measure_paced` at 12 KiB a row and 20 us a layer, for two batches and three places of the memory node."""
    node = node_description(
        rank=512,
        dtype="int8",
        vocab_size=len(trace.counts),
        core=own_cores()[1],
        spin_us=NODE_SPIN_US,
        max_bytes=256 << 20,
    )
    spec = RowSpec.uniform(**node["shape"])
    ranked = np.argsort(-trace.counts, kind="stable")
    stream = TokenStream(name="text", tokens=trace.tokens, counts=trace.counts)
    found: dict[str, Any] = {}
    with peer(node) as address:
        for changes in ({}, {"round_trip_us": 100.0}, {"cache": False}):
            for batch in (1, 8):
                regime = Regime(size="12k", batch=batch, **changes)
                with ExitStack() as stack:
                    sources = {
                        name: stack.enter_context(device_source(spec, address, regime, stream)) for name in CONTESTANTS
                    }
                    num_slots = sources["no guess"].num_slots
                    found[regime.name] = {
                        "cached_tokens": num_slots,
                        "absent": round(float(1 - np.isin(trace.tokens, ranked[:num_slots]).mean()), 4),
                        **measure_paced(trace, estimate_name, sources, regime, num_steps),
                    }
                print(f"{regime.name}: {json.dumps(found[regime.name])}", flush=True)
    return found


def main() -> None:
    """Measure and print; the last line is one JSON object, which `--out` keeps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="builtin:tiny")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--documents", type=int, default=400, help="of the training text, to rank tokens by")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    trace = make_trace(options.checkpoint, options.data, num_windows=options.windows, num_documents=options.documents)
    middle = f"behind layer {len(trace.guesses) // 2} of {len(trace.guesses) - 1}"
    shares = hit_shares(trace)
    for name, by_share in shares.items():
        print(f"{name}: {json.dumps(by_share['0.1 on the device'])}", flush=True)
    command = f"python benchmarks/speculative_rows/study.py --windows {options.windows} --documents {options.documents}"
    result = {
        **describe(torch.device("cpu"), 0, f"{command} --steps {options.steps}"),
        "checkpoint": options.checkpoint,
        "num_tokens": len(trace.tokens) - 1,
        "guesses": shares,
        "paced": {"estimate": middle, **paced(trace, middle, num_steps=options.steps)},
    }
    text = json.dumps(result)
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    main()
