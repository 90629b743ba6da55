"""Errors as the OpenAI API words them."""

from __future__ import annotations

from dataclasses import dataclass

_TYPES = {
    400: "invalid_request_error",
    401: "invalid_request_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    408: "timeout_error",
    409: "invalid_request_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable",
}


@dataclass(eq=False)
class ApiError(Exception):
    """An answer other than 200.

    Attributes:
        status: the HTTP status.
        message: for the reader: what was expected, what came, what to do.
        param: the request's field at fault.
        code: the API's short name of the fault.
        retry_after_s: seconds after which another try makes sense; None says nothing of it.
        allow: the method that the path takes, for a 405.
    """

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    retry_after_s: int | None = None
    allow: str | None = None

    def __str__(self) -> str:
        return self.message

    @property
    def body(self) -> dict[str, object]:
        """The JSON body of the answer."""
        error = {"message": self.message, "type": error_type(self.status), "param": self.param, "code": self.code}
        return {"error": error}


def error_type(status: int) -> str:
    """The API's kind of the errors with this HTTP status."""
    return _TYPES[status]


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A 400 about one field."""
    return ApiError(400, message, param, code)


def too_late(message: str) -> ApiError:
    """A 408: the request's own deadline passed."""
    return ApiError(408, message, "deadline_s", "deadline_exceeded")


def unavailable(message: str, retry_after_s: int = 5) -> ApiError:
    """A 503 that a later try may not meet."""
    return ApiError(503, message, None, "service_unavailable", retry_after_s)
