"""The reasoning budget: a thought that takes more tokens than it may is closed, and the answer goes on from there.

Decoding stops where the budget may be used up, and goes on when the tokens up to there are known: the host waits there
alone. Tokens that close a thought are run like any others, so caches hold what was written, and take no randomness, so
speculative decoding draws what plain decoding draws.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import closing

import mlx.core as mx

from ..cache import Cache
from ..messages.reasoning import CLOSE, ThinkingSplitter, closing_of, opened_by
from ..models import CausalLM
from ..tokenizer import Tokenizer
from .speculate import Drawn, Tally

HELD = "\ufffd"  # in place of text that more tokens may complete

Decode = Callable[[mx.array, list[int], int], Generator[Drawn, None, None]]
"""(logits (1, vocab) after some tokens, those tokens, how many to give) -> the next, with their log-probabilities."""


class ReasoningBudget:
    """The tokens left to the reasoning of one answer, its tags not counted.

    prompt: token ids; the reasoning is under way already if they end with its opening tag.
    """

    def __init__(self, tokenizer: Tokenizer, tokens: int, prompt: Sequence[int]) -> None:
        self._tokenizer, self._left = tokenizer, tokens
        self._texts = tokenizer.stream()
        opened = opened_by(tokenizer, prompt)
        self._splitter = ThinkingSplitter(inside=bool(opened))
        self._tail = opened

    @property
    def reach(self) -> int | None:
        """Tokens to come before the budget can be used up; None where it cannot be: the reasoning is over."""
        if not self._splitter.may_think:
            return None
        return self._left if self._splitter.thinking else self._left + 1

    def push(self, token: int) -> None:
        """Count another token of the answer."""
        if not self._splitter.may_think:
            return
        self._left -= self._splitter.thinking
        text = self._texts.push(token)
        self._tail = (self._tail + (text or HELD))[-len(CLOSE) :]
        self._splitter.feed(text)

    def close(self) -> list[int]:
        """The tokens that close the reasoning, which then is over."""
        text = closing_of(self._tail)
        self._splitter.feed(text)
        return self._tokenizer.encode(text, add_special_tokens=False)


def decode_within(
    budget: ReasoningBudget,
    decode: Decode,
    model: CausalLM,
    logits: mx.array,
    cache: Cache,
    *,
    tokens: Sequence[int],
    limit: int,
    tally: Tally,
) -> Generator[Drawn, None, None]:
    """`limit` tokens as `decode` gives them, but for those that close the reasoning where its budget ends.

    `logits` (1, vocab) are those after the last of `tokens`. tally: counts the passes made here.
    """
    written, forced = list(tokens), list[int]()
    before = cache.offset - len(written)  # what the cache has seen that is not among the tokens
    end = len(written) + limit
    while (left := end - len(written)) > 0:
        if rest := written[cache.offset - before :]:
            logits = model(mx.array([rest]), cache=cache, logits_to_keep=1)[:, -1]
            tally.steps += 1
        if budget.reach == 0:
            forced = budget.close()
        if forced:
            written.append(forced.pop(0))
            yield written[-1], _logprobs(logits)
            continue
        with closing(decode(logits, list(written), min(left, budget.reach or left))) as found:
            for drawn in found:
                written.append(drawn[0])
                budget.push(drawn[0])
                yield drawn


def _logprobs(logits: mx.array) -> mx.array:
    logits = logits[0].astype(mx.float32)
    return logits - mx.logsumexp(logits)
