"""The engine's parts alone: cache, segments, sampler, text."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tolserve.engine.config import EngineConfig
from tolserve.engine.detokenise import IncrementalText, held_length
from tolserve.engine.kv_cache import KVCache
from tolserve.engine.request import SamplingParams
from tolserve.engine.sampler import best, draw
from tolserve.engine.segments import plan_segments


def small_cache(num_blocks: int = 64) -> KVCache:
    return KVCache(
        num_layers=2,
        num_blocks=num_blocks,
        block_size=4,
        num_kv_heads=1,
        head_dim=2,
        num_rows=8,
        blocks_per_row=16,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )


def test_cache_gives_blocks_back() -> None:
    cache = small_cache(6)
    first, second = cache.take_row(), cache.take_row()
    assert cache.grow(first, 9)
    assert cache.grow(second, 12)
    assert not cache.grow(first, 13)
    assert cache.num_free_blocks == 0
    cache.release(second)
    assert cache.grow(first, 13)
    assert cache.counts[first] == 4
    cache.release(first)
    assert cache.num_free_blocks == 6


def test_compaction_keeps_every_row_s_contents() -> None:
    cache = small_cache()
    rows = [cache.take_row() for _ in range(8)]
    for row in rows:
        assert cache.grow(row, 28)
        for block in cache.table[row, :7]:
            cache.keys[:, block] = float(row)
            cache.values[:, block] = -float(row)
    for row in rows[:6]:
        cache.release(row)
    assert cache.compact() > 0
    assert cache.span == 14
    for row in rows[6:]:
        blocks = torch.from_numpy(cache.table[row, :7])
        assert (cache.keys[:, blocks] == row).all()
        assert (cache.values[:, blocks] == -row).all()
    fresh = cache.take_row()
    assert cache.grow(fresh, 40)
    held = np.concatenate([cache.table[row, : cache.counts[row]] for row in (*rows[6:], fresh)])
    assert len(set(held.tolist())) == len(held)


def test_segments_are_cut_where_a_band_is_first_added() -> None:
    segments = plan_segments(6, {1: 0, 2: 1, 3: 1, 5: 2})
    assert [segment.band for segment in segments] == [None, 0, 1, 2]
    assert [[(h.kind[0], h.layer) for h in s.halves] for s in segments] == [
        [("a", 0), ("m", 0), ("a", 1)],
        [("m", 1), ("a", 2)],
        [("m", 2), ("a", 3), ("m", 3), ("a", 4), ("m", 4), ("a", 5)],
        [("m", 5)],
    ]
    assert len(plan_segments(6, {})) == 1


def draws(params: SamplingParams, logits: list[float], count: int = 2000) -> np.ndarray:
    uniform = (np.arange(count) + 0.5) / count
    tokens = draw(torch.tensor([logits]).expand(count, -1), [params] * count, uniform)
    return np.bincount(tokens.numpy(), minlength=len(logits)) / count


LOGITS = [0.0, 2.0, 1.0, -1.0]


def test_draws_follow_the_distribution() -> None:
    for temperature in (0.5, 1.0, 2.0):
        expected = torch.softmax(torch.tensor(LOGITS) / temperature, 0).numpy()
        found = draws(SamplingParams(temperature=temperature), LOGITS)
        np.testing.assert_allclose(found, expected, atol=2e-3)


def test_top_k_and_top_p_keep_the_most_likely() -> None:
    probabilities = torch.softmax(torch.tensor(LOGITS), 0).numpy()
    two = np.array([0, probabilities[1], probabilities[2], 0]) / (probabilities[1] + probabilities[2])
    np.testing.assert_allclose(draws(SamplingParams(top_k=2), LOGITS), two, atol=2e-3)
    just_two = float(probabilities[1] + probabilities[2]) - 0.01
    np.testing.assert_allclose(draws(SamplingParams(top_p=just_two), LOGITS), two, atol=2e-3)
    np.testing.assert_allclose(draws(SamplingParams(top_p=1e-6), LOGITS), [0, 1, 0, 0])
    np.testing.assert_allclose(draws(SamplingParams(top_k=1), LOGITS), [0, 1, 0, 0])


def test_a_draw_does_not_depend_on_the_others_parameters() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 50, generator=generator)
    mixed = [SamplingParams(top_k=5), SamplingParams(), SamplingParams(top_p=0.5), SamplingParams(temperature=3.0)]
    uniform = np.array([0.1, 0.9, 0.6, 0.4])
    together = draw(logits, mixed, uniform).tolist()
    alone = [int(draw(logits[i : i + 1], mixed[i : i + 1], uniform[i : i + 1])[0]) for i in range(4)]
    assert together == alone


def test_a_seeded_draw_among_equal_logits_does_not_depend_on_the_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    for uniform in np.random.default_rng(0).random(60):
        row = torch.randn(1, 2000, generator=generator).bfloat16().float()
        alone = int(draw(row, [SamplingParams(top_k=50)], np.array([uniform]))[0])
        for other in (SamplingParams(), SamplingParams(top_k=60), SamplingParams(top_k=3)):
            both = draw(torch.cat([row, row]), [SamplingParams(top_k=50), other], np.array([uniform, 0.3]))
            assert int(both[0]) == alone


def test_the_best_are_in_one_order_whatever_their_number() -> None:
    generator = torch.Generator().manual_seed(1)
    values = torch.randint(-9, 9, (4, 500), generator=generator) / 4.0
    values[:, ::7] = -0.0
    values[:, ::11] = -torch.inf
    expected = sorted(range(500), key=lambda column: (-float(values[2, column]), column))
    for count in (1, 7, 60, 499, 500):
        found, ids = best(values, count)
        assert ids[2].tolist() == expected[:count]
        assert torch.equal(found, values.gather(1, ids))


def test_almost_no_temperature_is_greedy() -> None:
    assert SamplingParams(temperature=1e-6).greedy and SamplingParams(temperature=1e-40).plain_greedy
    assert not SamplingParams(temperature=1e-5).greedy
    assert draws(SamplingParams(temperature=1e-5), [1.0, 5.0, 4.99, -3.0]).tolist() == [0, 1, 0, 0]


class Bytes:
    """Tokens are bytes of UTF-8."""

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return bytes(ids).decode("utf-8", errors="replace")


def pushed(text: IncrementalText, data: bytes) -> tuple[list[str], bool]:
    pieces = []
    for byte in data:
        piece, stopped = text.push(byte)
        pieces.append(piece)
        if stopped:
            return pieces, True
    return pieces, False


def test_text_comes_whole_character_by_character() -> None:
    text = IncrementalText(Bytes(), list(b"prompt "))
    data = "naïve 日本語 and more plain text".encode()
    pieces, _ = pushed(text, data)
    assert "".join(pieces) + text.flush() == data.decode()
    assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in pieces)


@pytest.mark.parametrize("length", [1, 2])
def test_a_character_that_the_prompt_began_comes_when_it_is_whole(length: int) -> None:
    prompt, output = b"x " + "日".encode()[:length], "日".encode()[length:] + b" y"
    text = IncrementalText(Bytes(), list(prompt))
    assert "".join(pushed(text, output)[0]) + text.flush() == "日 y"


def test_a_prompt_that_ends_in_no_character_gives_nothing_twice() -> None:
    text = IncrementalText(Bytes(), list(b"x \xff\xfe"))
    assert "".join(pushed(text, b"ab")[0]) + text.flush() == "ab"


def test_an_incomplete_character_comes_out_at_the_end() -> None:
    text = IncrementalText(Bytes(), [])
    assert pushed(text, b"a\xe6\x97")[0] == ["a", "", ""]
    assert text.flush() == "\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(
    ("data", "stops", "expected", "stopped"),
    [
        (b"hello world", ("lo w",), "hel", True),
        (b"hello lo", ("lo w",), "hello lo", False),
        (b"aaab", ("aab",), "a", True),
        (b"one two", ("two", "ne"), "o", True),
        (b"abc", ("abcd", "bcx"), "abc", False),
    ],
)
def test_stop_strings(data: bytes, stops: tuple[str, ...], expected: str, stopped: bool) -> None:
    text = IncrementalText(Bytes(), [], stops)
    pieces, ended = pushed(text, data)
    assert ended == stopped
    assert "".join(pieces) + ("" if ended else text.flush()) == expected


def test_held_length() -> None:
    assert held_length("xab", ("abc", "bd")) == 2
    assert held_length("xb", ("abc", "bd")) == 1
    assert held_length("xyz", ("abc",)) == 0


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"max_tokens": -1}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"seed": -1}, "seed"),
        ({"stop": ("",)}, "stop"),
        ({"logprobs": 101}, "logprobs"),
    ],
)
def test_sampling_parameters_outside_their_range(settings: dict[str, object], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        SamplingParams(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"block_size": 0}, "block_size"),
        ({"max_num_seqs": 4096}, "max_num_batched_tokens"),
        ({"alpha": -1.0}, "alpha"),
        ({"drop_layers": (-1,)}, "drop_layers"),
        ({"dtype": "float64"}, "dtype"),
    ],
)
def test_engine_settings_outside_their_range(settings: dict[str, object], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        EngineConfig(**settings)  # type: ignore[arg-type]
