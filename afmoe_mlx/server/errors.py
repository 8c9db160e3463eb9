"""`RequestError`: what ends a request, with the status and the words that its client is told.

`failure` makes one of any error, so that none is told more than it may know.
"""

import logging

from ..errors import AfmoeError, ContextFullError, InputError, TokenizerError

_log = logging.getLogger(__name__)

# Seconds after which to ask again, where nothing better is known.
RETRY_AFTER = 5


class RequestError(Exception):
    """A request that is not answered, or not to its end.

    status: of HTTP. code: a word for programs, such as "context_length_exceeded"; of a 400 "invalid_value" if it has no
    better one. param: the field that is wrong. retry_after: seconds after which to ask again. Each protocol has a form
    of its own for these.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param = status, message, param
        self.code = "invalid_value" if code is None and status == 400 else code
        self.retry_after = retry_after


class ContextLengthError(RequestError):
    """A prompt that the model's context does not hold."""

    def __init__(self, tokens: int, most: int) -> None:
        super().__init__(400, f"prompt is too long: {tokens} tokens > {most} maximum", code="context_length_exceeded")


def failure(error: BaseException) -> RequestError:
    """An error of one request as its client is told it: 400 for what it asked, else 500, of which the log has more."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, ContextFullError):
        return RequestError(400, str(error), code="context_length_exceeded")
    if isinstance(error, InputError | TokenizerError):
        return RequestError(400, str(error))
    _log.error("a request failed", exc_info=error)
    words = str(error) if isinstance(error, AfmoeError) else "the answer failed: the server's log says why"
    return RequestError(500, words, code="internal_error")


def unavailable(message: str) -> RequestError:
    """A failure that is over soon, or with another server."""
    return RequestError(503, message, code="unavailable", retry_after=RETRY_AFTER)
