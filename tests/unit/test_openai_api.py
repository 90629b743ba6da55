"""Requests of /v1/completions: what is taken, what is refused and how, what answers look like."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_engine import LetterTokenizer
from serve_kit import byte_tokenizer

from tolserve.engine.request import MemoryCharge, TokenOutput
from tolserve.openai_api.errors import ApiError
from tolserve.openai_api.prompts import ModelInfo, Prompt, output_budget, parse_prompts
from tolserve.openai_api.request import CompletionRequest, parse_request, sampling_params
from tolserve.openai_api.response import LogprobsWriter, StreamWriter, sum_bills

MODEL = ModelInfo(name="m", vocab_size=100, max_model_len=8)


def request(**fields: Any) -> CompletionRequest:
    return parse_request(json.dumps({"model": "m", "prompt": "a", **fields}).encode())


def prompts(prompt: Any, *, choices: int = 1, model: ModelInfo = MODEL) -> list[Prompt]:
    return parse_prompts(prompt, model, LetterTokenizer(), longest_token=4, choices=choices)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 10**30}, "n"),
        ({"seed": 2**63}, "seed"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"other": 1}}, "stream_options"),
        ({"best_of": 3}, "best_of"),
        ({"priority": 0.5}, "priority"),
        ({"priority": 2**31}, "priority"),
        ({"deadline_s": 0}, "deadline_s"),
        ({"deadline_s": 1e9}, "deadline_s"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"logit_bias": {"5": 1.0}}, "logit_bias"),
        ({"colour": "red"}, "colour"),
        ({"model": None}, "model"),
    ],
)
def test_a_wrong_field_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        request(**fields)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert caught.value.body["error"]["type"] == "invalid_request_error"  # type: ignore[index]


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b'{"model":"m","prompt":"\\ud800"}', b"[" * 100_000],
)
def test_a_body_that_is_no_request_is_refused(body: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        parse_request(body)
    assert caught.value.status == 400


def test_not_a_number_is_refused() -> None:
    with pytest.raises(ApiError):
        parse_request(b'{"model":"m","prompt":"a","temperature":NaN}')


def test_fields_that_ask_for_nothing_are_taken() -> None:
    plain = request(
        best_of=1,
        frequency_penalty=0,
        presence_penalty=0.0,
        repetition_penalty=1,
        logit_bias={},
        suffix=None,
        user="u",
    )
    assert plain.num_choices == 1


@given(
    st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(), lambda x: st.lists(x, max_size=4))
)
@settings(max_examples=60, deadline=None)
def test_any_prompt_is_taken_or_refused_with_400(prompt: Any) -> None:
    try:
        taken = prompts(prompt)
    except ApiError as error:
        taken = []
        status = error.status
    assert taken or status == 400
    assert all(0 < len(one.token_ids) <= MODEL.max_model_len for one in taken)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("ab", [[97, 98]]),
        (["a", "bb"], [[97], [98, 98]]),
        ([5, 6], [[5, 6]]),
        ([[5], [6, 7]], [[5], [6, 7]]),
    ],
)
def test_the_four_forms_of_a_prompt(prompt: Any, expected: list[list[int]]) -> None:
    model = ModelInfo(name="m", vocab_size=128, max_model_len=8)
    assert [one.token_ids for one in prompts(prompt, model=model)] == expected


@pytest.mark.parametrize(
    "prompt",
    [
        [],
        "",
        [[]],
        [100],
        [-1],
        [1.0],
        [True],
        [[1], "a"],
        ["a", 1],
        {},
        None,
        [None],
        "a" * 9,
        [1] * 9,
        "a" * 1000,
    ],
)
def test_a_wrong_prompt_is_refused(prompt: Any) -> None:
    with pytest.raises(ApiError) as caught:
        prompts(prompt)
    assert (caught.value.status, caught.value.param) == (400, "prompt")


def test_an_empty_prompt_becomes_the_start_token() -> None:
    model = ModelInfo(name="m", vocab_size=100, max_model_len=8, start_token_id=2)
    assert [one.token_ids for one in prompts(["", "a"], model=model)] == [[2], [97]]


def test_too_many_completions_are_refused() -> None:
    with pytest.raises(ApiError, match="129"):
        prompts(["a"] * 129)


def test_the_output_budget_is_what_the_length_leaves() -> None:
    prompt = Prompt([1] * 5)
    assert (output_budget(None, prompt, MODEL), output_budget(3, prompt, MODEL)) == (3, 3)
    assert output_budget(0, Prompt([1] * 8), MODEL) == 0
    with pytest.raises(ApiError, match="at most 3"):
        output_budget(4, prompt, MODEL)


def test_choices_of_one_seed_differ_and_the_first_keeps_it() -> None:
    seeds = [sampling_params(request(seed=5), choice=i, vocab_size=9, max_tokens=1).seed for i in range(2)]
    assert seeds == [5, 6]
    assert sampling_params(request(seed=-1), choice=0, vocab_size=9, max_tokens=1).seed == 2**64 - 1


def test_prompt_logprobs_are_asked_for_by_echo() -> None:
    with_echo = sampling_params(request(logprobs=2, echo=True), choice=0, vocab_size=9, max_tokens=1)
    without = sampling_params(request(logprobs=2), choice=0, vocab_size=9, max_tokens=1)
    assert (with_echo.prompt_logprobs, without.prompt_logprobs) == (2, None)


def test_logprobs_have_offsets_over_all_chunks() -> None:
    writer = LogprobsWriter(LetterTokenizer(), [65, 66], "AB")
    first = writer.write_prompt([None, TokenOutput(66, -1.0, ((65, -0.5),))])
    second = writer.write([TokenOutput(67, -3.0)])
    assert first == {
        "tokens": ["A", "B"],
        "token_logprobs": [None, -1.0],
        "top_logprobs": [None, {"A": -0.5, "B": -1.0}],
        "text_offset": [0, 1],
    }
    assert (second["text_offset"], second["top_logprobs"]) == ([2], [{"C": -3.0}])


def test_offsets_count_characters_of_the_text_not_of_its_pieces() -> None:
    tokenizer = byte_tokenizer()
    prompt, output = tokenizer.encode("é!").ids, tokenizer.encode("日b").ids
    writer = LogprobsWriter(tokenizer, prompt, "é!")
    assert writer.write_prompt([None, *(TokenOutput(token, -1.0) for token in prompt[1:])])["text_offset"] == [0, 0, 1]
    offsets = [writer.write([TokenOutput(token, -1.0)])["text_offset"][0] for token in output]
    assert offsets == [2, 2, 2, 3]
    without_echo = LogprobsWriter(tokenizer, prompt, None)
    assert without_echo.write([TokenOutput(token, -1.0) for token in output])["text_offset"] == [0, 0, 0, 1]


def test_stream_events_are_the_json_that_json_would_write() -> None:
    writer = StreamWriter('c"1', "a\\b", 7, num_choices=2, with_usage=True)
    event = writer.chunk(1, 'x"\n\u00e9', None, None)
    assert event.startswith("data: ") and event.endswith("\n\n") and "\n" not in event[:-2]
    assert json.loads(event[6:]) == {
        "id": 'c"1',
        "object": "text_completion",
        "created": 7,
        "model": "a\\b",
        "choices": [{"index": 1, "text": 'x"\n\u00e9', "logprobs": None, "finish_reason": None}],
        "usage": None,
    }
    assert json.loads(writer.chunk(0, "", {"tokens": []}, "stop")[6:])["choices"][0]["finish_reason"] == "stop"
    assert json.loads(writer.usage_chunk({"total_tokens": 3})[6:])["usage"] == {"total_tokens": 3}


def test_bills_add_up_by_tier() -> None:
    one = MemoryCharge(rows_needed=3, rows_unique=2, hits_by_tier={"cache": 0.5}, bytes_moved=10.0, stall_ms=0.25)
    two = MemoryCharge(rows_needed=1, rows_unique=1, hits_by_tier={"cache": 1.0, "node": 2.0}, bytes_moved=5.0)
    total = sum_bills([one, None, two])
    assert total is not None
    assert (total["rows_needed"], total["bytes_moved"], total["stall_ms"]) == (4, 15.0, 0.25)
    assert total["hits_by_tier"] == {"cache": 1.5, "node": 2.0}
    assert sum_bills([None]) is None
