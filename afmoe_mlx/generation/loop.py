"""The decode loop on token ids: prefill in chunks, then one token a step, the next always under way."""

import copy
from collections.abc import Callable, Iterator, Sequence

import mlx.core as mx

from .. import device
from ..cache import Cache
from ..models import CausalLM, sweep, sweep_length, sweeps
from .processors import LogitsProcessor, check_token_ids
from .sampling import Sampler, keeps_no_count

Progress = Callable[[int, int], None]

# Tokens between two returns of freed buffers to the system: of an answer, whose caches grow, and of a prompt, whose
# next chunk takes the same ones again.
CLEAR_EVERY = 256
CLEAR_PROMPT_EVERY = 2048


def prefill(
    model: CausalLM,
    tokens: Sequence[int],
    cache: Cache,
    *,
    step_size: int | None = None,
    on_progress: Progress | None = None,
    on_chunk: Callable[[], None] | None = None,
) -> mx.array:
    """Run the prompt's tokens through the model in chunks of `step_size`; the last position's logits (1, vocab).

    step_size: by default what suits the device. on_chunk: called after each chunk, when the cache has its columns.
    InputError for a token that the model has not.
    """
    check_token_ids(tokens, model.config.vocab_size, "the prompt")
    if sweeps(model):
        return _sweep(model, tokens, cache, step_size, on_progress, on_chunk)
    done, cleared, total = 0, 0, len(tokens)
    while done < total:
        if on_progress is not None:
            on_progress(done, total)
        chunk = tokens[done : done + (step_size or device.prefill_step(cache.offset))]
        done += len(chunk)
        logits = model(mx.array([chunk]), cache=cache, logits_to_keep=1 if done == total else None)
        mx.eval(cache.arrays)  # the layers alone
        if on_chunk is not None:
            on_chunk()
        if done - cleared >= CLEAR_PROMPT_EVERY or done == total:
            mx.clear_cache()
            cleared = done
    if on_progress is not None:
        on_progress(total, total)
    return logits[:, -1]


def _sweep(
    model: CausalLM,
    tokens: Sequence[int],
    cache: Cache,
    step_size: int | None,
    on_progress: Progress | None,
    on_chunk: Callable[[], None] | None,
) -> mx.array:
    """The same for a model that reads its experts: as many tokens as there is room for, each layer for all of them."""
    total, length = len(tokens), sweep_length(model)
    for start in range(0, total, length):
        part = tokens[start : start + length]

        def tell(layers: int, start: int = start, count: int = len(part)) -> None:
            if on_progress is not None:
                on_progress(start + count * layers // len(model.layers), total)

        tell(0)
        step = step_size or device.prefill_step(cache.offset + len(part))
        logits = sweep(model, part, cache, step_size=step, on_layer=tell)
        if on_chunk is not None:
            on_chunk()
    mx.clear_cache()
    return logits


def decode(
    model: CausalLM,
    logits: mx.array,
    cache: Cache,
    sampler: Sampler,
    *,
    tokens: Sequence[int] = (),
    processors: Sequence[LogitsProcessor] = (),
    limit: int,
) -> Iterator[tuple[int, mx.array]]:
    """`limit` tokens one after the other, each with its log-probabilities (vocab,) in float32.

    `logits` (1, vocab) are those after the last of `tokens`, which only the processors read. While a token is being
    read the next step is already running, so the cache may have seen one token more than was yielded.
    """
    choose = Chooser(sampler, processors, tokens)
    token, logprobs = choose(logits)
    mx.async_eval(token, logprobs, choose.history)
    for step in range(1, limit):
        if step % CLEAR_EVERY == 0:
            mx.clear_cache()  # caches that grew have left buffers behind that are too small for anything
        following = choose(model(token[:, None], cache=cache)[:, -1])
        mx.async_eval(*following, choose.history)
        yield token_id(token), logprobs
        token, logprobs = following
    yield token_id(token), logprobs


class Chooser:
    """Draws one token after the other, and knows those before for the processors.

    What it gives is to be evaluated along with `history`: another thread, which may ask for the next, could not.
    """

    def __init__(self, sampler: Sampler, processors: Sequence[LogitsProcessor], tokens: Sequence[int]) -> None:
        self.sampler, self._processors = sampler, processors
        self.begin(tokens)

    def begin(self, tokens: Sequence[int]) -> None:
        """Go on after these tokens; the randomness goes on where it was."""
        self.history = mx.array(list(tokens) if self._processors else [], mx.int32)

    def __call__(self, logits: mx.array, mask: mx.array | None = None) -> tuple[mx.array, mx.array]:
        """The next token (1,), by its logits (1, vocab), and its log-probabilities (vocab,).

        mask: (vocab,) bool, the tokens that may be drawn, if not all; one at least.
        """
        logits = self._processed(logits if mask is None else _masked(logits, mask), mask).astype(mx.float32)
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        token = self.sampler(logprobs)
        if self._processors:
            self.history = mx.concatenate([self.history, token.astype(mx.int32)])
        return token, logprobs[0]

    def _processed(self, allowed: mx.array, mask: mx.array | None) -> mx.array:
        """What the processors make of logits, of which they can neither allow what the mask forbids nor forbid all."""
        logits = allowed
        for processor in self._processors:
            logits = processor(self.history, logits)
        if mask is None or not self._processors:
            return logits
        logits = _masked(logits, mask)
        return mx.where((logits > -mx.inf).any(), logits, allowed)

    def take(self, tokens: Sequence[int]) -> None:
        """Go on after tokens that were not drawn; they take no randomness."""
        if self._processors and tokens:
            self.history = mx.concatenate([self.history, mx.array(list(tokens), mx.int32)])

    def agreeing(
        self,
        logits: mx.array,
        draft: Sequence[int],
        *,
        masks: Sequence[mx.array] | None = None,
        forced: Sequence[Sequence[int]] | None = None,
    ) -> list[tuple[int, mx.array]]:
        """The next tokens, by the logits (L + 1, vocab) before and after each of `draft`'s L guesses.

        The draw ends with the first token that is not the guess. The host waits once, unless a sampler or a processor
        may keep count of its calls: then for each token. masks: for each of the logits. forced: the tokens after each
        guess, before what is drawn next.
        """
        rows = [(logits[i : i + 1], None if masks is None else masks[i]) for i in range(len(draft) + 1)]
        after = [*(forced or [()] * len(draft)), ()]
        if not all(map(keeps_no_count, (self.sampler, *self._processors))):
            found = []
            for row, guess, more in zip(rows, [*draft, None], after, strict=True):
                token, logprobs = self(*row)
                mx.async_eval(token, logprobs)
                found.append((token_id(token), logprobs))
                if found[-1][0] != guess:
                    break
                self.take(more)
            mx.async_eval(self.history)
            return found
        drawn, states = [], []
        # each as if the guesses before it were right; where one is not, the rest is not used
        for row, more in zip(rows, after, strict=True):
            drawn.append(self(*row))
            states.append(self.twin())
            self.take(more)
        tokens = token_ids([token for token, _ in drawn], [logprobs for _, logprobs in drawn])
        right = next((i for i, guess in enumerate(draft) if tokens[i] != guess), len(draft))
        self.sampler, self.history = states[right].sampler, states[right].history
        mx.async_eval(self.history)
        return [(tokens[i], drawn[i][1]) for i in range(right + 1)]

    def twin(self) -> "Chooser":
        """One that goes on from here in the same way, with the same randomness."""
        other = copy.copy(self)
        other.sampler = copy.copy(self.sampler)
        return other


def _masked(logits: mx.array, mask: mx.array) -> mx.array:
    return mx.where(mask, logits.astype(mx.float32), -mx.inf)


def token_id(token: mx.array) -> int:
    """A token (1,) as a number; here, and in `token_ids`, the host waits for the device."""
    return int(token.item())  # type: ignore[arg-type]


def token_ids(tokens: Sequence[mx.array], others: Sequence[mx.array] = ()) -> list[int]:
    """Tokens (1,) as numbers, in one wait; `others` are computed along with them."""
    joined = mx.concatenate(list(tokens))
    mx.async_eval(joined, *others)
    return joined.tolist()  # type: ignore[return-value]
