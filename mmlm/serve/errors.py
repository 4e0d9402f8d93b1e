"""Errors of requests, in the form of OpenAI's error object."""

from __future__ import annotations

from typing import Any

from visual_tokenizer.errors import UserError


class RequestError(UserError):
    """A request that cannot be served.

    Attributes:
        status: HTTP status.
        param: the field that is wrong, or None.
        code: a word for programs, or None.
    """

    def __init__(self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code


TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


def error_body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """Return OpenAI's error object."""
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
