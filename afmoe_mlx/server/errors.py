"""`RequestError`: what ends a request, with the status and the words that its client is told."""


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
        self.tokens, self.most = tokens, most
