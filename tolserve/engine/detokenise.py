"""Text out of tokens as they come, with stop strings that may lie across token boundaries."""

from __future__ import annotations

from typing import Protocol

_CONTEXT = 6
"""Tokens before the new ones that are decoded with them: what a decoder's spacing rules look back on."""

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class Decoder(Protocol):
    """The part of `tokenizers.Tokenizer` that is used here."""

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        """Text of token ids."""


def held_length(text: str, stops: tuple[str, ...]) -> int:
    """Length of the longest end of `text` that could be the beginning of a stop string."""
    longest = max((len(stop) for stop in stops), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        end = text[-length:]
        if any(stop.startswith(end) for stop in stops):
            return length
    return 0


def added(known: str, text: str) -> str:
    """What `text` has beyond `known`, whose end may have been an incomplete character that `text` completes."""
    return text[len(known) if text.startswith(known) else len(known.rstrip(_INCOMPLETE)) :]


class IncrementalText:
    """Decodes a growing output.

    Text is given out once no later token can change it: not while it ends in an incomplete character, and not while
    its end could be the beginning of a stop string. A character that the prompt began belongs to the output.
    """

    def __init__(self, decoder: Decoder, prompt: list[int], stops: tuple[str, ...] = ()) -> None:
        self._decoder = decoder
        self._stops = stops
        self._window = prompt[-_CONTEXT:]
        self._known = self._decode(self._window)
        self._held = ""

    def push(self, token_id: int) -> tuple[str, bool]:
        """Add one token.

        Returns:
            The text that became final, and whether a stop string ended the output (it and what follows are dropped).
        """
        self._window.append(token_id)
        text = self._decode(self._window)
        if text.endswith(_INCOMPLETE) or len(text) < len(self._known.rstrip(_INCOMPLETE)):
            return "", False
        new = added(self._known, text)
        self._settle(text)
        return self._release(new)

    def flush(self) -> str:
        """The text held back, for an output that ends without a stop string."""
        rest = added(self._known, self._decode(self._window))
        text, stopped = self._release(rest)
        if stopped:
            return text
        held, self._held = self._held, ""
        return text + held

    def _settle(self, text: str) -> None:
        if len(self._window) < 2 * _CONTEXT:
            self._known = text
            return
        self._window = self._window[-_CONTEXT:]
        self._known = self._decode(self._window)

    def _release(self, new: str) -> tuple[str, bool]:
        if not self._stops:
            return new, False
        text = self._held + new
        found = [index for index in (text.find(stop) for stop in self._stops) if index >= 0]
        if found:
            self._held = ""
            return text[: min(found)], True
        held = held_length(text, self._stops)
        self._held = text[len(text) - held :]
        return text[: len(text) - held], False

    def _decode(self, ids: list[int]) -> str:
        return self._decoder.decode(ids, skip_special_tokens=True)
