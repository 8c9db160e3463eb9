"""Streaming detokenization: text as soon as no later token can change it."""

import tokenizers
from tokenizers.decoders import DecodeStream

MAX_TOKEN_ID = 2**32 - 1  # `tokenizers` raises on what does not fit its unsigned ids


class TextStream:
    """Turns token ids into text one at a time; all pushes and `finish` together equal `decode` of all ids."""

    # DecodeStream falls short in three ways. It cannot hand out the tail it holds back, so `finish` decodes the whole
    # answer once. Byte tokens such as <0xC3> decode as a run, all of it U+FFFD if one byte is wrong, while DecodeStream
    # prints the good ones early and then fails; so a run is fed to it whole. Any other decoder that revises what it
    # printed makes it fail at every further step: then the rest of the text is left to `finish`.

    def __init__(self, backend: tokenizers.Tokenizer, *, skip_special_tokens: bool = True) -> None:
        self._backend = backend
        self._skip_special_tokens = skip_special_tokens
        self._decoder: DecodeStream | None = DecodeStream(skip_special_tokens=skip_special_tokens)
        self._ids: list[int] = []
        self._byte_run: list[int] = []
        self._printed = 0

    def push(self, token_id: int) -> str:
        """The text that became final with this token: '' while a character is incomplete or the id is unknown."""
        token = self._backend.id_to_token(token_id) if 0 <= token_id <= MAX_TOKEN_ID else None
        if token is None:
            return ""
        self._ids.append(token_id)
        if self._decoder is None:
            return ""
        if _is_byte(token) or (self._byte_run and self._prints_nothing(token_id)):
            self._byte_run.append(token_id)
            return ""
        step, self._byte_run = [*self._byte_run, token_id], []
        try:
            text = self._decoder.step(self._backend, step) or ""
        except Exception:  # the binding raises nothing narrower
            self._decoder = None
            return ""
        self._printed += len(text)
        return text

    def finish(self) -> str:
        """The text held back so far; an incomplete UTF-8 sequence prints as U+FFFD. A second call gives ''."""
        text = self._backend.decode(self._ids, skip_special_tokens=self._skip_special_tokens)
        tail = text[self._printed :]
        self._printed = max(self._printed, len(text))
        return tail

    def _prints_nothing(self, token_id: int) -> bool:
        return not self._backend.decode([token_id], skip_special_tokens=self._skip_special_tokens)


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")
