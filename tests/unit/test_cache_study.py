"""The study of caches: traces, the optimum, the replay and the command, each against a plain count."""

from __future__ import annotations

import gzip
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from row_kit import draw_ids
from s3fifo_reference import PlainS3FIFO

from tolbuild.train.data import read_texts
from tolserve.cache_study import CacheStudyConfig, main
from tolserve.memory.policy import LRU, StaticByFrequency
from tolserve.memory.s3fifo import S3FIFO
from tolserve.study.belady import optimal_hits
from tolserve.study.replay import replay
from tolserve.study.tokens import load_tokenizer, text_tokens
from tolserve.study.traces import Trace, Workload, trace

VALID = Path(__file__).parents[2] / "data" / "public_domain.valid.jsonl.gz"


def workload(**changes: object) -> Workload:
    settings = {"name": "w", "prompt_tokens": 20, "output_tokens": 5, "num_seqs": 8, "num_batched_tokens": 32}
    return Workload(**settings | changes)  # type: ignore[arg-type]


def made_trace(num_steps: int, most_rows: int, vocab_size: int = 60) -> Trace:
    draw = np.random.default_rng(0)
    steps = [np.unique(draw_ids(draw, vocab_size, int(count))) for count in draw.integers(1, most_rows + 1, num_steps)]
    return Trace(steps=steps, vocab_size=vocab_size, num_tokens=0)


@pytest.mark.parametrize("in_order", [False, True])
def test_a_trace_computes_every_token_once_in_steps_of_bounded_size(in_order: bool) -> None:
    tokens = np.arange(5000)
    made = trace(tokens, 5000, workload(in_order=in_order), seed=1)
    computed = np.concatenate(made.steps)
    assert len(np.unique(computed)) == len(computed) == made.num_tokens
    assert made.num_tokens > 4800
    assert all(0 < len(ids) <= 32 for ids in made.steps)
    assert (np.concatenate(made.steps[:20]).max() < 1000) == in_order


def test_outputs_come_one_a_step_and_beside_prompts() -> None:
    made = trace(np.arange(4000), 4000, workload(prompt_tokens=1, output_tokens=100), seed=2)
    runs = sum(after in ids for before, ids in pairwise(made.steps) for after in before + 1)
    assert runs > 0.9 * made.num_rows
    assert max(map(len, made.steps)) == 8


def test_requests_that_fit_no_step_are_refused() -> None:
    with pytest.raises(ValueError, match="31 tokens a step do not hold one of each of 32"):
        workload(num_seqs=32, num_batched_tokens=31)
    with pytest.raises(ValueError, match="below 1"):
        workload(prompt_tokens=0)


def plain_optimum(made: Trace, num_slots: int, *, warm: bool) -> int:
    """Belady's rule, a set and a search for the next use at every step."""
    uses = [set(ids.tolist()) for ids in made.steps]

    def next_use(token: int, step: int) -> int:
        return next((later for later in range(step, len(uses)) if token in uses[later]), len(uses))

    def keep(tokens: set[int], step: int) -> set[int]:
        used_again = sorted((next_use(token, step), token) for token in tokens)
        return {token for when, token in used_again[:num_slots] if when < len(uses)}

    cached = keep(set(range(made.vocab_size)), 0) if warm else set()
    hits = 0
    for step, ids in enumerate(uses):
        hits += len(cached & ids)
        cached = keep(cached | ids, step + 1)
    return hits


@pytest.mark.parametrize("warm", [False, True])
def test_the_optimum_is_what_beladys_rule_gives(warm: bool) -> None:
    made = made_trace(120, 12)
    slots = [1, 2, 5, 13, 30, 60]
    assert optimal_hits(made, slots, warm=warm).tolist() == [plain_optimum(made, count, warm=warm) for count in slots]


def test_no_policy_beats_the_optimum_and_all_are_right_at_full_size() -> None:
    made = made_trace(150, 12)
    counts = np.bincount(np.concatenate(made.steps), minlength=60)
    for num_slots in (3, 30, 60):
        cold, warm = (int(optimal_hits(made, [num_slots], warm=start)[0]) for start in (False, True))
        for policy in (LRU(num_slots), S3FIFO(num_slots, 60)):
            assert 0 < replay(made, policy, num_slots) <= cold
        for policy in (LRU(num_slots, counts), S3FIFO(num_slots, 60, counts), StaticByFrequency(counts)):
            assert replay(made, policy, num_slots) <= warm
    assert warm == made.num_rows == replay(made, StaticByFrequency(counts), 60)
    assert cold == made.num_rows - made.num_distinct == replay(made, LRU(60), 60)


@pytest.mark.parametrize("num_slots", [80, 800])
@pytest.mark.parametrize(("prompt_tokens", "output_tokens"), [(1, 256), (200, 60)])
def test_s3_fifo_hits_on_text_within_a_point_of_one_row_at_a_time(
    prompt_tokens: int, output_tokens: int, num_slots: int
) -> None:
    tokens = text_tokens("tiny", "", load_tokenizer("builtin:tiny"), list(read_texts([VALID]))[:12], 25_000, seed=0)
    work = workload(prompt_tokens=prompt_tokens, output_tokens=output_tokens, num_seqs=32, num_batched_tokens=512)
    made = trace(tokens.tokens, tokens.vocab_size, work, seed=0)
    plain = PlainS3FIFO(num_slots)
    expected = sum(plain.step(ids.tolist()) for ids in made.steps)
    hits = replay(made, S3FIFO(num_slots, tokens.vocab_size), num_slots)
    assert abs(hits - expected) / made.num_rows < 0.01, (hits, expected, made.num_rows)


def test_the_command_writes_what_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with gzip.open(VALID, "rt", encoding="utf-8") as lines:
        (tmp_path / "text.jsonl").write_text("".join(line for line, _ in zip(lines, range(8), strict=False)))
    command = ["--text", str(tmp_path / "text.jsonl"), "--train-vocab", "600", "--folder", str(tmp_path / "kept")]
    command += ["--tokens", "8000", "--shares", "1%", "50%", "--streams", "served", "--zipf-vocab", "3000"]
    command += ["--num-seqs", "4", "--num-batched-tokens", "64"]
    assert main([*command, "--out", str(tmp_path / "out.json")]) == 0
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "out.json").read_text())
    assert [one["tokenizer"] for one in result["results"]] == ["builtin:tiny", "bpe-600", "zipf-3000"]
    assert "synthetic" in result["results"][2]["about"] and result["results"][2]["stream"] == "decode"
    assert {"machine", "versions", "seed", "command"} <= set(result)
    for one in result["results"]:
        assert {(name, start) for name, starts in one["miss_ratio"].items() for start in starts} == {
            (name, start) for name in ("belady", "lru", "s3fifo") for start in ("cold", "warm")
        } | {("frequency", "warm")}
        for name, starts in one["miss_ratio"].items():
            for start, ratios in starts.items():
                assert ratios[0] > ratios[1] >= one["miss_ratio"]["belady"][start][1], (name, start)
        assert f"{100 * one['miss_ratio']['s3fifo']['cold'][0]:.2f}" in printed
    kept = list((tmp_path / "kept").iterdir())
    assert len(kept) == 1 and kept[0].name.startswith("bpe-600-")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shares": ("0.1",)}, "write a percentage"),
        ({"shares": ("0%",)}, "write a percentage"),
        ({"shares": ("101%",)}, "write a percentage"),
        ({"shares": ()}, "empty"),
        ({"streams": ()}, "empty"),
        ({"tokens": 10}, "at least 1000"),
        ({"text": (Path("none.jsonl"),)}, "none.jsonl: no such file"),
        ({"num_seqs": 2000}, "do not hold"),
    ],
)
def test_a_study_that_makes_no_sense_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CacheStudyConfig(**{"text": (VALID,)} | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [(["--tokenizer", "none.json"], "none.json is no tokenizer"), (["--tokens", "900000"], "the text has 5 tokens of")],
)
def test_what_cannot_be_studied_is_said(
    changes: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text = tmp_path / "text.jsonl"
    text.write_text(json.dumps({"text": "A short text."}) + "\n")
    assert main(["--text", str(text), *changes]) == 1
    assert message in capsys.readouterr().err


def test_shares_are_sorted() -> None:
    assert CacheStudyConfig(text=(VALID,), shares=("10%", "0.5%")).share_values == (0.005, 0.1)
