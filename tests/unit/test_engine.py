"""What the engine does with requests: queues, ends, cancels, refuses, fails, and gives everything back."""

from __future__ import annotations

import pytest
from engine_models import (
    NUM_LAYERS,
    VOCAB_SIZE,
    dense_rows,
    mixed_requests,
    run_all,
    staged_source,
    tiny_engine,
    tiny_model,
    token_ids,
)

from tolbuild.table.errors import IdentityError, StoreError
from tolserve.engine.build import RowChecks
from tolserve.engine.request import RowsUnavailableError, SamplingParams

GREEDY = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)


class Letters:
    """A tokenizer of a small alphabet: two-character tokens, and halves of one two-byte character."""

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        text, half = "", False
        for token in ids:
            if token == VOCAB_SIZE - 2:
                half = True
            elif token == VOCAB_SIZE - 1:
                text, half = text + ("é" if half else "\N{REPLACEMENT CHARACTER}"), False
            else:
                text, half = text + f"{token:02d}"[-2:], False
        return text + ("\N{REPLACEMENT CHARACTER}" if half else "")


def test_requests_wait_for_blocks_and_all_finish() -> None:
    engine = tiny_engine(tiny_model("base"), num_blocks=12, max_num_seqs=3)
    outputs = run_all(engine, {str(i): ([i + 1] * 12, GREEDY) for i in range(7)})
    assert all(len(token_ids(found)) == 8 for found in outputs.values())
    assert engine.stats()["num_free_blocks"] == 12


def test_preempted_requests_keep_their_outputs() -> None:
    model = tiny_model("memory")
    params = SamplingParams(max_tokens=40, temperature=0.9, seed=3, ignore_eos=True)
    requests = {str(i): ([i + 1] * 4, params) for i in range(4)}
    roomy = run_all(tiny_engine(model), requests)
    engine = tiny_engine(model, num_blocks=20)
    tight = run_all(engine, requests)
    assert engine.stats()["num_preemptions"] > 0
    for request_id in requests:
        assert token_ids(tight[request_id]) == token_ids(roomy[request_id])


@pytest.mark.parametrize(
    ("prompt", "params", "message"),
    [
        ([], GREEDY, "no tokens"),
        ([1, VOCAB_SIZE], GREEDY, f"token {VOCAB_SIZE}"),
        ([-1], GREEDY, "token -1"),
        ([1] * 125, GREEDY, "max_model_len"),
        ([1] * 60, GREEDY, "num_blocks"),
        ([1], SamplingParams(stop=("x",)), "tokenizer"),
    ],
)
def test_what_can_never_be_served_is_refused(prompt: list[int], params: SamplingParams, message: str) -> None:
    engine = tiny_engine(tiny_model("base"), num_blocks=16)
    with pytest.raises(ValueError, match=message):
        engine.add_request("a", prompt, params)
    assert not engine.has_work()


def test_a_request_id_is_used_once_at_a_time() -> None:
    engine = tiny_engine(tiny_model("base"))
    engine.add_request("a", [1], GREEDY)
    with pytest.raises(ValueError, match="in use"):
        engine.add_request("a", [1], GREEDY)


def test_cancelling_frees_everything_at_any_time() -> None:
    model = tiny_model("memory")
    source = staged_source(model)
    engine = tiny_engine(model, source=source, max_num_seqs=2, max_num_batched_tokens=8)
    for request_id, (prompt, params) in mixed_requests(6).items():
        engine.add_request(request_id, prompt, params)
    for request_id in ("5", "0", "1", "2", "3", "4"):
        engine.step()
        output = engine.cancel(request_id)
        if output is not None:
            assert output.finished
            assert output.finish_reason == "abort"
    assert not engine.has_work()
    assert engine.step() == []
    assert engine.cancel("0") is None
    assert engine.stats()["num_free_blocks"] == engine.config.num_blocks
    engine.close()
    source.close()


def test_end_of_sequence_and_stop_ids() -> None:
    model = tiny_model("base")
    tokens = token_ids(run_all(tiny_engine(model), {"a": ([5], GREEDY)})["a"])
    place = next(i for i in range(1, 8) if tokens[i] not in tokens[:i])
    params = SamplingParams(max_tokens=8, temperature=0.0, stop_token_ids=(tokens[place],))
    outputs = run_all(tiny_engine(model), {"a": ([5], params)})["a"]
    assert token_ids(outputs) == tokens[: place + 1]
    assert outputs[-1].finish_reason == "stop"
    object.__setattr__(model.config, "eos_token_id", tokens[place])
    plain = SamplingParams(max_tokens=8, temperature=0.0)
    assert token_ids(run_all(tiny_engine(model), {"a": ([5], plain)})["a"]) == tokens[: place + 1]
    assert token_ids(run_all(tiny_engine(model), {"a": ([5], GREEDY)})["a"]) == tokens


def test_stop_string_across_tokens_ends_the_text_before_it() -> None:
    model = tiny_model("base")
    whole = "".join(o.text for o in run_all(tiny_engine(model, tokenizer=Letters()), {"a": ([5], GREEDY)})["a"])
    stop = whole[5:8]
    params = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True, stop=(stop, "never"))
    outputs = run_all(tiny_engine(model, tokenizer=Letters()), {"a": ([5], params)})["a"]
    assert "".join(output.text for output in outputs) == whole[: whole.index(stop)]
    assert outputs[-1].finish_reason == "stop"


def test_each_step_gives_each_running_request_one_token() -> None:
    engine = tiny_engine(tiny_model("base"))
    engine.add_request("a", [1, 2, 3], GREEDY)
    counts = []
    while engine.has_work():
        (output,) = engine.step()
        counts.append(len(output.tokens))
    assert counts == [1] * 8
    assert output.finish_reason == "length"


def test_rows_that_do_not_come_end_only_the_step_s_requests() -> None:
    model = tiny_model("memory")
    source = staged_source(model)
    engine = tiny_engine(model, source=source, max_num_seqs=2)
    for index in range(4):
        engine.add_request(str(index), [index + 1] * 5, GREEDY)
    engine.step()
    source.fail = StoreError("no node answered")
    failed = engine.step()
    assert {output.request_id for output in failed} == {"0", "1"}
    assert all(isinstance(output.error, RowsUnavailableError) for output in failed)
    source.fail = IdentityError("another table")
    assert all(isinstance(output.error, IdentityError) for output in engine.step())
    source.fail = None
    outputs = run_all(engine, {"again": ([9, 8, 7], GREEDY)})
    assert len(token_ids(outputs["again"])) == 8
    assert engine.stats()["num_free_blocks"] == engine.config.num_blocks
    engine.close()
    source.close()


def test_decode_rows_are_requested_when_the_token_is_known() -> None:
    model = tiny_model("memory")
    source = staged_source(model)
    engine = tiny_engine(model, source=source)
    engine.add_request("a", [1, 2, 3], GREEDY)
    (output,) = engine.step()
    assert source.log == [[1, 2, 3], [output.tokens[0].token_id]]
    (output,) = engine.step()
    assert len(source.log) == 3, "the second step found its row requested"


def test_prompt_rows_are_requested_a_chunk_ahead() -> None:
    model = tiny_model("memory")
    source = staged_source(model)
    engine = tiny_engine(model, source=source, max_num_batched_tokens=8)
    engine.add_request("a", list(range(20)), GREEDY)
    engine.step()
    assert source.log == [list(range(8)), list(range(8, 16))]
    engine.step()
    assert source.log[2:] == [list(range(16, 20))]


def test_the_bill_adds_up() -> None:
    model = tiny_model("memory")
    source = staged_source(model)
    engine = tiny_engine(model, source=source)
    outputs = run_all(engine, {"a": ([1, 1, 2], GREEDY), "b": ([1, 3], GREEDY)})
    bills = [outputs[name][-1].bill for name in ("a", "b")]
    assert [bill.rows_needed for bill in bills if bill] == [3 + 7, 2 + 7]
    assert bills[0] is not None
    assert bills[0].rows_unique == 2 + 7
    totals = engine.stats()["rows"]
    assert sum(bill.bytes_moved for bill in bills if bill) == pytest.approx(totals["bytes_moved"])
    assert totals["rows_needed"] == 19
    assert totals["hits_by_tier"]["remote"] > 0


def test_pinned_and_dropped_bands_are_not_requested() -> None:
    model = tiny_model("memory")
    source = staged_source(model)
    engine = tiny_engine(model, source=source, pinned_bands=1, drop_layers=(4,))
    assert engine.model.bands == (1,)
    source.log.clear()
    run_all(engine, {"a": ([1, 2], GREEDY)})
    assert source.log


@pytest.mark.parametrize("wrong", [False, True])
@pytest.mark.parametrize("pinned_bands", [0, 1, 3])
def test_served_rows_are_verified_pinned_or_not(wrong: bool, pinned_bands: int) -> None:
    model = tiny_model("memory")
    rows_VLD = dense_rows(model)
    checks = RowChecks(
        recompute=lambda token, layer: rows_VLD[token, layer] * (1.01 if wrong else 1.0),
        bounds=dict.fromkeys(range(NUM_LAYERS), 1e-3),
    )
    engine = tiny_engine(
        model, source=staged_source(model), verify_every=1, alpha=0.5, pinned_bands=pinned_bands, checks=checks
    )
    run_all(engine, {"a": ([1, 2, 3], GREEDY)})
    stats = engine.stats()
    assert stats["rows_verified"] == 8 > NUM_LAYERS, "every layer had its turn"
    assert stats["row_mismatches"] == (8 if wrong else 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"drop_layers": (9,)}, "9"),
        ({"pinned_bands": 4}, "3 bands"),
        ({"max_model_len": 1000}, "256 positions"),
        ({"verify_every": 1}, "verify_every"),
    ],
)
def test_settings_that_do_not_fit_the_model(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_engine(tiny_model("memory"), **settings)


def test_base_takes_no_rows_and_memory_needs_them() -> None:
    with pytest.raises(ValueError, match="base"):
        tiny_engine(tiny_model("base"), source=staged_source(tiny_model("memory")))
