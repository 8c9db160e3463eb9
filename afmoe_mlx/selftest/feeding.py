"""The ways in which a model is fed its text, all of which must give the logits of one shot."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import mlx.core as mx

from ..cache import Cache, KVQuantization, PrefixStore
from ..generation.loop import Chooser
from ..generation.pace import Pace
from ..generation.speculate import SpeculativeDecoder
from ..models import CausalLM

# Tokens that are read as a prompt, in two chunks, the first of them longer than the window; the others are decoded.
CHUNKS = (0, 72, 88)
PROMPT = CHUNKS[-1]
# So little room that the window's buffer is shifted many times.
SLACK = 32

# Logits (n, vocab) and the position that the first of them follow.
Part = tuple[int, mx.array]
Feeding = Callable[[CausalLM, Sequence[int]], list[Part]]


def one_shot(model: CausalLM, ids: Sequence[int]) -> list[Part]:
    return [(0, model(mx.array([ids]))[0])]


def chunks_and_steps(model: CausalLM, ids: Sequence[int]) -> list[Part]:
    """As an answer is made: the prompt in chunks, then a token at a time."""
    cache = model.make_cache(SLACK)
    return [*_prompt(model, ids, cache), *_steps(model, ids, cache)]


def uncompiled(model: CausalLM, ids: Sequence[int]) -> list[Part]:
    """The same, each operation by itself."""
    was, model.compiles_decode = model.compiles_decode, False
    try:
        return chunks_and_steps(model, ids)
    finally:
        model.compiles_decode = was


def rewound(model: CausalLM, ids: Sequence[int]) -> list[Part]:
    """After a wrong turn: other tokens, in a chunk and in steps, are taken back before the text goes on."""
    cache = model.make_cache(SLACK)
    parts = _prompt(model, ids, cache)
    model(mx.array([ids[:5]]), cache=cache)
    for token in ids[:5]:
        model(mx.array([[token]]), cache=cache)
    cache.rewind(13)  # three of the prompt's own, too
    return [*parts, *_steps(model, ids, cache)]


def from_store(model: CausalLM, ids: Sequence[int]) -> list[Part]:
    """From a prefix store that has seen the prompt before."""
    store = PrefixStore(model, max_bytes=1 << 28, block_size=16)
    cache = model.make_cache()
    parts = _prompt(model, ids, cache)
    store.insert(ids[:PROMPT], cache)
    found, known = store.lookup(ids)
    if known != PROMPT // 16 * 16:
        raise RuntimeError(f"the prefix store knew {known} tokens of {PROMPT}")
    return [*parts, *_steps(model, ids, found)]


def padded_batch(model: CausalLM, ids: Sequence[int]) -> list[Part]:
    """Three rows that are at different places of the text, padded on the left, then decoded together."""
    lengths, longest = (PROMPT, 50, 7), PROMPT
    rows = [[0] * (longest - length) + list(ids[:length]) for length in lengths]
    mask = [[0] * (longest - length) + [1] * length for length in lengths]
    cache = model.make_cache(SLACK)
    logits = model(mx.array(rows), attention_mask=mx.array(mask), cache=cache)
    parts = [(0, row[longest - length :]) for row, length in zip(logits, lengths, strict=True)]
    for step in range(len(ids) - longest):
        logits = model(mx.array([[ids[length + step]] for length in lengths]), cache=cache)
        parts += [(length + step, row) for row, length in zip(logits, lengths, strict=True)]
    return parts


def speculated(model: CausalLM, ids: Sequence[int]) -> list[Part]:
    """By speculative decoding, of whose guesses every other one is wrong from its third token on."""
    cache = model.make_cache(SLACK)
    parts = _prompt(model, ids, cache)
    after: list[mx.array] = []

    def record(_: mx.array, logits: mx.array) -> mx.array:
        after.append(logits)
        return logits

    following = iter([*ids[PROMPT:], 0])
    choose = Chooser(lambda logprobs: mx.array([next(following)]), [record], ids[:PROMPT])
    drafter = _Script(ids, PROMPT)
    decoder = SpeculativeDecoder(model, cache, choose, drafter, limit=len(ids) - PROMPT + 1, pace=_Eager(drafter.most))
    for _ in decoder.tokens(parts[-1][1][-1:]):
        pass
    return [*parts, *((PROMPT + i, logits) for i, logits in enumerate(after[1:]))]


def quantized_keys(bits: int) -> Feeding:
    """With keys and values of full-attention layers in few bits."""

    def feed(model: CausalLM, ids: Sequence[int]) -> list[Part]:
        was, model.kv_quantization = model.kv_quantization, KVQuantization(bits)
        try:
            return chunks_and_steps(model, ids)
        finally:
            model.kv_quantization = was

    return feed


def _prompt(model: CausalLM, ids: Sequence[int], cache: Cache) -> list[Part]:
    return [(start, model(mx.array([ids[start:end]]), cache=cache)[0]) for start, end in pairwise(CHUNKS)]


def _steps(model: CausalLM, ids: Sequence[int], cache: Cache) -> Iterator[Part]:
    for position in range(cache.offset, len(ids)):
        logits = model(mx.array([[ids[position]]]), cache=cache)[0]
        mx.async_eval(logits)  # as decoding does
        yield position, logits


class _Script:
    """A drafter that knows the text, and now and then pretends not to."""

    most = 3
    behind = 0

    def __init__(self, ids: Sequence[int], seen: int) -> None:
        self._ids, self._seen, self._drafts = ids, seen, 0

    def begin(self, tokens: Sequence[int]) -> None:
        self._seen = len(tokens)

    def extend(self, tokens: Sequence[int]) -> None:
        self._seen += len(tokens)

    def is_ready(self) -> bool:
        return True

    def propose(self, count: int, choose: Chooser) -> list[int]:
        draft = list(self._ids[self._seen : self._seen + count])
        self._drafts += 1
        if self._drafts % 2 == 0 and len(draft) == self.most:
            draft[-1] = (draft[-1] + 1) % 64
        return draft


class _Eager(Pace):
    """Drafts whenever that is possible, whatever it costs."""

    def length(self, most: int, behind: int = 0) -> int:
        return min(most, self.lengths[-1])
