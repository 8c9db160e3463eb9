"""What a client is told of an error in its request, or in the server."""

import logging

from ..errors import AfmoeError, ContextFullError, InputError, TokenizerError
from .errors import RequestError

_log = logging.getLogger(__name__)

# Seconds after which to ask again, where nothing better is known.
RETRY_AFTER = 5


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
