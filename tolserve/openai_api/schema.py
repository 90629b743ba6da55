"""What /openapi.json answers: the endpoint in OpenAPI 3.2 (which can describe events), for the model that is served.

The request's schema is made from `CompletionRequest`. What JSON Schema cannot say is refused with 400 all the same:
prompt and output together beyond the model's length, prompts times n beyond the limit, stream_options without stream.
"""

from __future__ import annotations

from typing import Any

from tolserve.openai_api.errors import error_type
from tolserve.openai_api.prompts import ModelInfo
from tolserve.openai_api.request import MAX_CHOICES, MAX_STOP_CHARS, MAX_STOP_STRINGS, CompletionRequest

Schema = dict[str, Any]

VERSION = "1"
"""Of the description: it changes where a client must."""

_COUNT: Schema = {"type": "integer", "minimum": 0}
_AMOUNT: Schema = {"type": "number", "minimum": 0}
_TEXT: Schema = {"type": "string"}
_JSON = "application/json"


def openapi(model: ModelInfo, *, with_key: bool, with_table: bool = False) -> Schema:
    """The whole document.

    Args:
        with_key: whether paths under /v1/ ask for a key.
        with_table: whether /v1/table is there.
    """
    models = {"/v1/models": _models(with_key), "/v1/models/{model}": _one_model(model, with_key)}
    document: Schema = {
        "openapi": "3.2.0",
        "info": {"title": f"Completions of {model.name}", "version": VERSION},
        "paths": {
            "/v1/completions": {"post": _completions(with_key)},
            **models,
            "/health": {"get": _health()},
            "/metrics": {"get": _metrics()},
            **({"/v1/table": _table(with_key)} if with_table else {}),
        },
        "components": {"schemas": {**_requests(model), **_answers(model)}},
    }
    if with_key:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return document


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _closed(properties: dict[str, Schema], *, optional: tuple[str, ...] = ()) -> Schema:
    """An object of these properties and no others."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "additionalProperties": False, "required": required, "properties": properties}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _list(items: Schema, **bounds: int) -> Schema:
    return {"type": "array", "items": items, **bounds}


def _answer(text: str, schema: Schema, *, kind: str = _JSON) -> Schema:
    return {"description": text, "content": {kind: {"schema": schema}}}


def _refused(*statuses: int) -> dict[str, Schema]:
    """Answers that are errors; those that a later try may not meet say after how many seconds."""
    answers = {str(status): _answer(error_type(status), _ref("Error")) for status in statuses}
    for status in {"429", "503"} & set(answers):
        answers[status]["headers"] = {"Retry-After": {"required": True, "schema": {"type": "integer", "minimum": 1}}}
    return answers


def _guarded(operation: Schema, with_key: bool) -> Schema:
    if with_key:
        operation["security"] = [{"key": []}]
        operation["responses"] |= _refused(401)
    return operation


def _completions(with_key: bool) -> Schema:
    whole = _answer("the completions; for `stream`, events", _ref("Completion"))
    whole["content"]["text/event-stream"] = {"itemSchema": _event()}
    operation = {
        "operationId": "complete",
        "requestBody": {"required": True, "content": {_JSON: {"schema": _ref("CompletionRequest")}}},
        "responses": {"200": whole, **_refused(400, 404, 408, 413, 429, 503)},
    }
    return _guarded(operation, with_key)


def _event() -> Schema:
    """One event of a stream: the next text of a choice, the usage, an error that ends it, or the end."""
    parsed = {"contentMediaType": _JSON, "contentSchema": {"anyOf": [_ref("Chunk"), _ref("Error")]}}
    return {"type": "object", "properties": {"data": {"anyOf": [{"const": "[DONE]"}, {"type": "string", **parsed}]}}}


def _models(with_key: bool) -> Schema:
    listed = _closed({"object": {"const": "list"}, "data": _list(_ref("Model"), minItems=1, maxItems=1)})
    operation = {"operationId": "models", "responses": {"200": _answer("the model that is served", listed)}}
    return {"get": _guarded(operation, with_key)}


def _one_model(model: ModelInfo, with_key: bool) -> Schema:
    name = {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "enum": [model.name]}}
    answers = {"200": _answer("the model", _ref("Model")), **_refused(404)}
    operation = {"operationId": "model", "parameters": [name], "responses": answers}
    return {"get": _guarded(operation, with_key)}


def _health() -> Schema:
    return {
        "operationId": "health",
        "responses": {"200": _answer("requests are answered", _closed({})), **_refused(503)},
    }


def _metrics() -> Schema:
    shown = _answer("metrics in Prometheus' text format", _TEXT, kind="text/plain")
    return {"operationId": "metrics", "responses": {"200": shown}}


def _table(with_key: bool) -> Schema:
    """Which table version is served, and how to go to another; see `tolserve.conductor.Conductor.state`."""
    state = _answer("the state of the change", {"type": "object"})
    version = {"anyOf": [{"type": "integer", "minimum": 1}, {"const": "latest"}]}
    body = {"required": True, "content": {_JSON: {"schema": _closed({"version": version})}}}
    look = {"operationId": "table", "responses": {"200": state, **_refused(409, 503)}}
    use = {"operationId": "use_table", "requestBody": body}
    use["responses"] = {"200": state, **_refused(400, 409, 413, 503)}
    return {"get": _guarded(look, with_key), "post": _guarded(use, with_key)}


def _requests(model: ModelInfo) -> dict[str, Schema]:
    """`CompletionRequest` and what it refers to, narrowed to what this model takes."""
    request = CompletionRequest.model_json_schema(ref_template=_ref("{model}")["$ref"])
    parts: dict[str, Schema] = request.pop("$defs")
    least = 0 if model.start_token_id is not None else 1
    text = {"type": "string", "minLength": least}
    ids = _list({"type": "integer", "minimum": 0, "maximum": model.vocab_size - 1}, maxItems=model.max_model_len)
    several = {"minItems": 1, "maxItems": MAX_CHOICES}
    stop = {"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARS}
    request["properties"] |= {
        "model": {"type": "string", "enum": [model.name]},
        "prompt": {
            "anyOf": [
                text,
                {**ids, "minItems": 1},
                _list(text, **several),
                _list({**ids, "minItems": least}, **several),
            ]
        },
        "stop": {"anyOf": [stop, _list(stop, maxItems=MAX_STOP_STRINGS), {"type": "null"}]},
    }
    return {"CompletionRequest": request, **parts}


def _answers(model: ModelInfo) -> dict[str, Schema]:
    """What comes back."""
    card = {
        "id": {"const": model.name},
        "object": {"const": "model"},
        "created": _COUNT,
        "owned_by": {"const": "tolserve"},
        "max_model_len": {"const": model.max_model_len},
        "vocab_size": {"const": model.vocab_size},
    }
    head = {
        "id": {"type": "string", "pattern": "^cmpl-[0-9a-f]{32}$"},
        "object": {"const": "text_completion"},
        "created": _COUNT,
        "model": {"const": model.name},
        "system_fingerprint": _TEXT,
    }
    named = ("system_fingerprint",)
    choices = _list(_ref("Choice"), minItems=1, maxItems=MAX_CHOICES)
    new = _list(_ref("NewText"), maxItems=1)
    return {
        "Completion": _closed({**head, "choices": choices, "usage": _ref("Usage")}, optional=named),
        "Chunk": _closed({**head, "choices": new, "usage": _or_null(_ref("Usage"))}, optional=("usage", *named)),
        "Choice": _choice({"enum": ["stop", "length"]}),
        "NewText": _choice({"enum": [None, "stop", "length", "abort"]}),
        "Logprobs": _logprobs(),
        "Usage": _usage(),
        "MemoryBill": _bill(),
        "Model": _closed(card),
        "Error": _error(),
    }


def _choice(reasons: Schema) -> Schema:
    logprobs = _or_null(_ref("Logprobs"))
    return _closed({"index": _COUNT, "text": _TEXT, "logprobs": logprobs, "finish_reason": reasons})


def _logprobs() -> Schema:
    """Four lists of one length; a prompt's first token has no log-probability."""
    value = {"type": "number", "maximum": 0}
    tops = {"type": "object", "additionalProperties": value}
    return _closed(
        {
            "tokens": _list(_TEXT),
            "token_logprobs": _list(_or_null(value)),
            "top_logprobs": _list(_or_null(tops)),
            "text_offset": _list(_COUNT),
        }
    )


def _usage() -> Schema:
    counts = {"prompt_tokens": _COUNT, "completion_tokens": _COUNT, "total_tokens": _COUNT}
    details = {"prompt_tokens_details": _closed({"cached_tokens": _COUNT})}
    return _closed({**counts, **details, "memory_bill": _or_null(_ref("MemoryBill"))}, optional=("memory_bill",))


def _bill() -> Schema:
    return _closed(
        {
            "rows_needed": _COUNT,
            "rows_unique": _COUNT,
            "rows_guessed": _AMOUNT,
            "bytes_moved": _AMOUNT,
            "fetch_ms": _AMOUNT,
            "stall_ms": _AMOUNT,
            "hits_by_tier": {"type": "object", "additionalProperties": _AMOUNT},
        }
    )


def _error() -> Schema:
    said = {"message": _TEXT, "type": _TEXT, "param": _or_null(_TEXT), "code": _or_null(_TEXT)}
    return _closed({"error": _closed(said)})
