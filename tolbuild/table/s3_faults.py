"""What S3 says when it refuses, in this package's errors: the reason, the place, and what to do about it."""

from __future__ import annotations

import re

from tolbuild.table.errors import ObjectExistsError, ObjectNotFoundError, StoreError, ToLError
from tolbuild.table.store import Credentials

_CODE = re.compile(r"<Code>([^<]+)</Code>")
_MESSAGE = re.compile(r"<Message>([^<]*)</Message>")
_OTHER_REGION = re.compile(r"<Region>([^<]+)</Region>|expecting '([^']+)'|x-amz-bucket-region\W+([a-z0-9-]+)")

_EXPIRED = ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired")
_REGION = ("AuthorizationHeaderMalformed", "PermanentRedirect", "IllegalLocationConstraintException")
_FORBIDDEN = ("PermissionDeniedError", "UnauthenticatedError")


def translated(error: Exception, *, url: str, bucket: str, key: str, credentials: Credentials) -> ToLError:
    """The error to raise for one of obstore's.

    Args:
        url: of the store, without trailing slash.
        key: the object, or the folder that was listed.
    """
    kind, text = type(error).__name__, str(error)
    code_found, where = _CODE.search(text), f"{url}/{key}"
    code = code_found[1] if code_found else ""
    if code == "NoSuchBucket":
        return StoreError(f"no such bucket: {bucket} (for {where}); make it first")
    if code in _EXPIRED:
        return StoreError(
            f"{where}: the credentials have expired ({code}: {_said(text)}); set fresh AWS_ACCESS_KEY_ID, "
            "AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN and run the same command again: what is finished stays"
        )
    if code in _REGION or "redirect without LOCATION" in text:
        return StoreError(_wrong_region(text, bucket, where, credentials.region))
    if kind == "AlreadyExistsError":
        return ObjectExistsError(f"{where} exists")
    if kind in _FORBIDDEN or re.search(r"status code: 40[13]", text):
        return StoreError(f"no permission for {where}: {code or kind}: {_said(text)}")
    if isinstance(error, FileNotFoundError):
        return ObjectNotFoundError(f"no such object: {where}")
    return StoreError(f"{where} at {credentials.endpoint_url or 'AWS'}: {_in_short(kind, code, text)}")


def is_unanswered(error: BaseException) -> bool:
    """Whether a request may have been carried out without our learning of it: no answer came, or a server's fault."""
    text = str(error)
    return "HTTP error" in text or re.search(r"status code: 5\d\d", text) is not None


def _wrong_region(text: str, bucket: str, where: str, ours: str) -> str:
    found = _OTHER_REGION.search(text)
    theirs = next((name for name in found.groups() if name), "") if found else ""
    there = f"is in the region {theirs}" if theirs else "is in another region"
    asked = f"{ours} (from AWS_REGION)" if ours else "us-east-1 (AWS_REGION is not set)"
    return f"{where}: the bucket {bucket} {there}, not in {asked}; set AWS_REGION{f'={theirs}' if theirs else ''}"


def _said(text: str) -> str:
    found = _MESSAGE.search(text)
    return found[1] if found else text.splitlines()[0]


def _in_short(kind: str, code: str, text: str) -> str:
    first = text.splitlines()[0] if text else kind
    first = first.partition("<?xml")[0].strip().removesuffix(":")
    why = f" ({code}: {_said(text)})" if code else ""
    silent = "; nobody answered in time" if "operation timed out" in text.lower() or "TimedOut" in text else ""
    return f"{kind}: {first}{why}{silent}"
