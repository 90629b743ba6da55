"""Prompts in the API's four forms as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from tolserve.openai_api.errors import ApiError, invalid
from tolserve.openai_api.request import MAX_CHOICES


class Encoding(Protocol):
    """What encoding a text gives."""

    @property
    def ids(self) -> list[int]:
        """Its tokens."""
        ...


class Tokenizer(Protocol):
    """The part of `tokenizers.Tokenizer` that the API needs."""

    def encode(self, sequence: str) -> Encoding:
        """The tokens of a text."""
        ...

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of some tokens."""
        ...

    def id_to_token(self, id: int) -> str | None:  # noqa: A002 - the library's name
        """The token as the vocabulary writes it."""
        ...


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What the API must know of the served model.

    Attributes:
        name: what requests call it.
        vocab_size: token ids are below this.
        max_model_len: longest prompt plus output, in tokens.
        start_token_id: what an empty prompt becomes; None refuses it.
        created: Unix time of the serving's start.
    """

    name: str
    vocab_size: int
    max_model_len: int
    start_token_id: int | None = None
    created: int = 0


@dataclass(frozen=True)
class Prompt:
    """One prompt: its ids and, where it came as text, the text."""

    token_ids: list[int]
    text: str | None = None


def _forms(prompt: Any) -> list[str | list[int]]:
    """The prompts of one field, each text or ids; types inside the ids are not looked at yet."""
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt, list) and prompt:
        if all(isinstance(item, str) for item in prompt) or all(isinstance(item, list) for item in prompt):
            return cast("list[str | list[int]]", prompt)
        if not any(isinstance(item, str | list) for item in prompt):
            return [cast("list[int]", prompt)]
    raise invalid("prompt must be a text, token ids, or a non-empty list of texts or of token id lists", "prompt")


def _too_long(num_tokens: int | str, model: ModelInfo) -> ApiError:
    return invalid(
        f"the prompt has {num_tokens} tokens; this model takes {model.max_model_len} in prompt and output together",
        "prompt",
        "context_length_exceeded",
    )


def _from_text(text: str, model: ModelInfo, tokenizer: Tokenizer, longest_token: int) -> Prompt:
    if len(text) > model.max_model_len * longest_token:
        raise _too_long(f"more than {len(text) // longest_token}", model)
    return Prompt(tokenizer.encode(text).ids, text)


def _from_ids(ids: list[Any], model: ModelInfo) -> Prompt:
    if len(ids) > model.max_model_len:
        raise _too_long(len(ids), model)
    for position, token in enumerate(ids):
        if type(token) is not int:
            raise invalid(f"prompt token {position} is {type(token).__name__}; it must be an integer", "prompt")
        if not 0 <= token < model.vocab_size:
            raise invalid(f"prompt token {position} is {token}; the vocabulary ends at {model.vocab_size}", "prompt")
    return Prompt(ids)


def parse_prompts(
    prompt: Any, model: ModelInfo, tokenizer: Tokenizer, *, longest_token: int, choices: int
) -> list[Prompt]:
    """Every prompt of a request as ids, each short enough to leave room for one token.

    `longest_token` is the most characters that one token can stand for: a text longer than the model's length times
    it is refused before it costs anything. `choices` completions of each prompt will be made.

    Raises:
        ApiError: 400 for a wrong form, too many prompts, an id outside the vocabulary, a prompt too long.
    """
    forms = _forms(prompt)
    if len(forms) * choices > MAX_CHOICES:
        raise invalid(f"{len(forms)} prompts times n = {choices} is more than {MAX_CHOICES} completions", "n")
    prompts = [
        _from_text(form, model, tokenizer, longest_token) if isinstance(form, str) else _from_ids(form, model)
        for form in forms
    ]
    if model.start_token_id is not None:
        prompts = [one if one.token_ids else Prompt([model.start_token_id], one.text) for one in prompts]
    for one in prompts:
        if not one.token_ids:
            raise invalid("a prompt has no token", "prompt")
        if len(one.token_ids) > model.max_model_len:
            raise _too_long(len(one.token_ids), model)
    return prompts


def output_budget(asked: int | None, prompt: Prompt, model: ModelInfo) -> int:
    """How many tokens a prompt may get: what was asked, or all the room there is for `max_tokens: null`.

    Raises:
        ApiError: 400 where prompt and output together pass the model's length.
    """
    room = model.max_model_len - len(prompt.token_ids)
    if asked is None and room < 1:
        raise _too_long(len(prompt.token_ids), model)
    if asked is None:
        return room
    if asked > room:
        raise invalid(
            f"{len(prompt.token_ids)} prompt tokens and max_tokens {asked} are more than the model's "
            f"{model.max_model_len}; ask for at most {room}",
            "max_tokens",
            "context_length_exceeded",
        )
    return asked
