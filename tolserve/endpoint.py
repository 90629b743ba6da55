"""Asking a running endpoint over HTTP, as the commands do that look at it or change it."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from tolbuild.table.errors import ToLError

TIMEOUT_S = 60.0


class EndpointError(ToLError):
    """Nobody answers at the URL, or the endpoint refuses; the message says what to do."""


class Endpoint:
    """An endpoint at a URL.

    Args:
        url: with or without /v1.
        api_key: that it asks for; None where it asks for none.
    """

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def table(self) -> dict[str, Any]:
        """What it serves, by which nodes; see `tolserve.table_admin`.

        Raises:
            EndpointError: it cannot be had.
        """
        state: dict[str, Any] = json.loads(self._ask("/v1/table"))
        return state

    def use_version(self, version: int | str) -> dict[str, Any]:
        """Begin to go to a version, a number or "latest"; the state then.

        Raises:
            EndpointError: it cannot be had, or the endpoint refuses.
        """
        state: dict[str, Any] = json.loads(self._ask("/v1/table", json.dumps({"version": version}).encode()))
        return state

    def metrics(self) -> str:
        """What /metrics shows.

        Raises:
            EndpointError: it cannot be had.
        """
        return self._ask("/metrics").decode()

    def _ask(self, path: str, body: bytes | None = None) -> bytes:
        request = urllib.request.Request(self.url + path, body, self._headers)  # noqa: S310 - the user's own URL
        try:
            with self._opener.open(request, timeout=TIMEOUT_S) as answer:
                said: bytes = answer.read()
                return said
        except urllib.error.HTTPError as error:
            raise EndpointError(_reason(error, self.url + path)) from error
        except (OSError, ValueError) as error:
            raise EndpointError(
                f"no endpoint answers at {self.url} ({getattr(error, 'reason', error)}); `python -m tolserve.run` "
                "prints the address of the one that it starts"
            ) from error


def read_key(api_key_file: str | None) -> str | None:
    """The key that is a file's first line; None where there is no file.

    Raises:
        ValueError: it cannot be read.
    """
    if api_key_file is None:
        return None
    try:
        return Path(api_key_file).read_text().partition("\n")[0].strip()
    except (OSError, ValueError) as error:
        raise ValueError(f"--api-key-file {api_key_file} cannot be read: {error}") from error


def _reason(error: urllib.error.HTTPError, url: str) -> str:
    try:
        said = json.loads(error.read())["error"]["message"]
    except (ValueError, KeyError, TypeError, OSError):
        said = error.reason
    return f"{url} answered {error.code}: {said}"
