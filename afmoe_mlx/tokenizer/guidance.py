"""A tokenizer as the library llguidance has it, which constrains what a model writes; made in a thread, once."""

import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING

import tokenizers

from ..errors import TokenizerError

if TYPE_CHECKING:
    from llguidance import LLTokenizer


class Guidance:
    """The `LLTokenizer` of a backend for a model with `vocab_size` logits; `ends` are the tokens that end an answer.

    With 200,000 tokens it takes a second or two to make: a thread begins at once, `tokenizer` waits for it.
    """

    def __init__(self, backend: tokenizers.Tokenizer, vocab_size: int, ends: Iterable[int]) -> None:
        self._backend = backend
        self.vocab_size, self.ends = vocab_size, frozenset(ends)
        self._made: LLTokenizer | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._make, daemon=True)
        self._thread.start()

    @property
    def tokenizer(self) -> "LLTokenizer":
        """The library's tokenizer; TokenizerError for one that it cannot take."""
        self._thread.join()
        if self._made is None:
            reason = " ".join(str(self._error).split())
            raise TokenizerError(f"answers of this model cannot be constrained: {reason}") from self._error
        return self._made

    def _make(self) -> None:
        try:
            from llguidance import LLTokenizer

            # the model may have more logits than the tokenizer has tokens, or fewer; those without a text are forbidden
            count = max(self.vocab_size, self._backend.get_vocab_size(with_added_tokens=True))
            self._made = LLTokenizer(self._backend.to_str(), n_vocab=count, eos_token=sorted(self.ends))
        except BaseException as error:  # a panic of the library is no Exception
            self._error = error
