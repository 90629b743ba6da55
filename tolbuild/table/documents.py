"""JSON documents that carry the checksum of their own body: manifests and receipts.

    {"checksum": "<SHA-256 of the body's canonical text>", "body": {...}}

There is one way to write a body (sorted keys, one space a level), and a document that is not written so is damaged: a
flipped bit anywhere is found.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from tolbuild.table.errors import TableCorruptError


def body_digest(body: dict[str, Any]) -> bytes:
    """SHA-256 of a body, 32 bytes."""
    return hashlib.sha256(_text(body)).digest()


def encode(body: dict[str, Any]) -> bytes:
    """The document of a body; equal bodies give equal bytes."""
    return _text({"checksum": body_digest(body).hex(), "body": body})


def decode(data: bytes, key: str) -> dict[str, Any]:
    """The body of a document.

    Raises:
        TableCorruptError: naming `key`: the bytes are no document, or not the one that was written.
    """
    try:
        document = json.loads(data)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise TableCorruptError(f"{key}: {len(data)} bytes that are no JSON document: {error}", [key]) from error
    body = document.get("body") if isinstance(document, dict) else None
    if not isinstance(body, dict):
        raise TableCorruptError(f"{key}: a document without body", [key])
    stated, actual = document.get("checksum"), body_digest(body).hex()
    if stated != actual:
        raise TableCorruptError(f"{key}: the body's checksum is {actual[:16]}, {str(stated)[:16]} is stated", [key])
    if encode(body) != data:
        raise TableCorruptError(f"{key}: not written as this format writes it; some bytes were changed", [key])
    return body


def _text(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n").encode()
