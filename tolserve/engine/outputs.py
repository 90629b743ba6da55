"""What a step's new token means to its request: whether it ends, and the text and tokens to give out."""

from __future__ import annotations

from tolserve.engine.request import FinishReason, RequestOutput, TokenOutput
from tolserve.engine.sequence import Sequence


def finish_reason(sequence: Sequence, eos_token_id: int | None) -> FinishReason | None:
    """Why the sequence ends with its last token, judged by ids and length; stop strings come with its text."""
    params = sequence.params
    if sequence.num_output:
        last = sequence.tokens[-1]
        if last in params.stop_token_ids or (last == eos_token_id and not params.ignore_eos):
            return "stop"
    return "length" if sequence.num_output >= params.max_tokens else None


def output_of(sequence: Sequence, token: TokenOutput | None) -> RequestOutput:
    """The output of a step that gave `token` (None: the prompt was all that was wanted).

    Sets the sequence's finish reason where a stop string ends it.
    """
    text = ""
    if sequence.text is not None:
        stopped = False
        if token is not None and sequence.finish_reason != "stop":
            text, stopped = sequence.text.push(token.token_id)
        if stopped:
            sequence.finish_reason = "stop"
        elif sequence.finish_reason is not None:
            text += sequence.text.flush()
    first = sequence.num_output <= 1 and sequence.params.prompt_logprobs is not None
    return RequestOutput(
        request_id=sequence.request_id,
        tokens=() if token is None else (token,),
        text=text,
        finished=sequence.finish_reason is not None,
        finish_reason=sequence.finish_reason,
        prompt_logprobs=tuple(sequence.prompt_logprobs) if first else None,
        bill=sequence.bill if sequence.finish_reason is not None else None,
        num_reused=sequence.num_reused or 0,
    )


def ended(sequence: Sequence, reason: FinishReason, error: Exception | None = None) -> RequestOutput:
    """The last output of a request that ends before its time."""
    return RequestOutput(
        request_id=sequence.request_id,
        tokens=(),
        finished=True,
        finish_reason=reason,
        bill=sequence.bill,
        num_reused=sequence.num_reused or 0,
        error=error,
    )
