"""Errors in Anthropic's form."""

from typing import Any

from ..errors import RequestError

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
}

# Codes that clients look for; the others are for those of OpenAI's interface.
_DETAILED = {"thread_unsupported_request"}


def error_body(error: RequestError) -> dict[str, Any]:
    """The body of an error, and the data of an `error` event."""
    kind = _TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    details = {"details": {"error_code": error.code}} if error.code in _DETAILED else {}
    return {"type": "error", "error": {"type": kind, "message": error.message, **details}}
