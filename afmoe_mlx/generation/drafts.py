"""The drafters of speculative decoding: prompt lookup and a draft model."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Protocol

import mlx.core as mx

from .. import device
from ..cache import Cache
from ..errors import InputError
from ..models import CausalLM
from ..tokenizer import Tokenizer
from .loop import Chooser, prefill, token_ids

# What a draft model guesses in a step at most, unless told; and prompt lookup.
NUM_DRAFT_TOKENS = 3
PROMPT_LOOKUP = 7

# Tokens of agreement with an earlier place that are worth an interruption of plain decoding; those beyond which a place
# counts as no better; and how many places are looked at.
SURE_MATCH = 3
LONGEST_MATCH = 16
PLACES = 32

# What tokenizers that are not the same rarely cut alike.
PROBE = "The quick brown fox, 1234567890 times:\n\tdef f(x): return {'naïve': [x**2, \"日本語\"]}  # Größe привет 🙂\n"


class Drafter(Protocol):
    """Guesses how a text goes on."""

    most: int
    """Tokens guessed at most."""

    @property
    def behind(self) -> int:
        """Tokens of the text that `is_ready` would have to read."""

    def begin(self, tokens: Sequence[int]) -> None:
        """Begin a text anew."""

    def extend(self, tokens: Sequence[int]) -> None:
        """Learn what follows the text so far."""

    def is_ready(self) -> bool:
        """Catch up with the text, whatever that takes; whether a proposal is likely once the next token is known."""

    def propose(self, count: int, choose: Chooser) -> list[int]:
        """Up to `count` tokens that may follow. `choose`, which draws the model's own afterwards, is not advanced."""


class PromptLookup:
    """Guesses that what followed the last tokens before will follow them again."""

    behind = 0

    def __init__(self, most: int = PROMPT_LOOKUP) -> None:
        self.most = most
        self.begin([])

    def begin(self, tokens: Sequence[int]) -> None:
        self._tokens: list[int] = []
        self._places: defaultdict[tuple[int, int], list[int]] = defaultdict(list)  # after each pair of tokens
        self.extend(tokens)

    def extend(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            if len(self._tokens) >= 2:
                self._places[self._tokens[-2], self._tokens[-1]].append(len(self._tokens))
            self._tokens.append(token)

    def is_ready(self) -> bool:
        return any(self._match(place) >= SURE_MATCH for place in self._recent_places())

    def propose(self, count: int, choose: Chooser | None = None) -> list[int]:
        """What stands after the longest earlier match, the latest if there are several; `choose` is not needed."""
        place = max(self._recent_places(), key=self._match, default=None)
        if place is None:
            return []
        text = self._tokens[place : place + count]
        while len(text) < count:  # a text that repeats itself goes on doing so
            text += text
        return text[:count]

    def _recent_places(self) -> Iterable[int]:
        """Where the last two tokens have been followed before, the latest first."""
        if len(self._tokens) < 2:
            return ()
        return reversed(self._places.get((self._tokens[-2], self._tokens[-1]), [])[-PLACES:])

    def _match(self, place: int) -> int:
        """How many tokens before `place` agree with the last ones."""
        tokens = self._tokens
        length = 2
        while length < min(LONGEST_MATCH, place) and tokens[place - 1 - length] == tokens[-1 - length]:
            length += 1
        return length


class DraftModel:
    """Guesses what a smaller model would say. It remembers its text, to go on from what another has in common."""

    def __init__(self, model: CausalLM, most: int = NUM_DRAFT_TOKENS, *, step_size: int = 512) -> None:
        """step_size: tokens run at a time to catch up."""
        self.model, self.most = model, most
        self._step_size = step_size
        self._tokens: list[int] = []
        self._cache: Cache = model.make_cache()
        self._seen: list[int] = []  # by the cache: some of the tokens, then maybe guesses
        self._agreed = 0  # seen tokens that are known to be right

    def begin(self, tokens: Sequence[int]) -> None:
        self._tokens, self._agreed = list(tokens), 0

    def extend(self, tokens: Sequence[int]) -> None:
        self._tokens += tokens

    @property
    def behind(self) -> int:
        # the last two are left for `propose`: after a draft that was all right there are no more
        return max(len(self._tokens) - 2 - self._right, 0) if self._has_room else 0

    def is_ready(self) -> bool:
        """Always, but where the text outgrows the model's context."""
        if not self._has_room:
            return False
        self._step_back()
        if self.behind:
            unread = self._tokens[len(self._seen) : -2]
            prefill(self.model, unread, self._cache, step_size=self._step_size)
            self._note(unread)
        return True

    def propose(self, count: int, choose: Chooser) -> list[int]:
        if not self._has_room:
            return []
        self._step_back()
        draw = choose.twin()
        rest = self._tokens[len(self._seen) :]
        logits = self.model(mx.array([rest]), cache=self._cache, logits_to_keep=1)
        drawn = [draw(logits[:, -1])[0]]
        for _ in range(count - 1):
            drawn.append(draw(self.model(drawn[-1][:, None], cache=self._cache)[:, -1])[0])
        guesses = token_ids(drawn)
        self._note(rest)
        self._seen += guesses[:-1]
        return guesses

    @property
    def _has_room(self) -> bool:
        return len(self._tokens) + self.most <= self.model.config.max_position_embeddings

    @property
    def _right(self) -> int:
        """How many seen tokens are those of the text."""
        right = self._agreed
        while right < min(len(self._seen), len(self._tokens)) and self._seen[right] == self._tokens[right]:
            right += 1
        return right

    def _step_back(self) -> None:
        """Take back guesses that turned out wrong, and whatever an interrupted call left."""
        right = min(self._right, len(self._tokens) - 1)
        surplus = self._cache.offset - right
        if not 0 <= surplus <= self._cache.rewindable:
            self._cache, right = self.model.make_cache(), 0
        else:
            self._cache.rewind(surplus)
        self._seen, self._agreed = self._tokens[:right], right

    def _note(self, tokens: Sequence[int]) -> None:
        self._seen += tokens
        self._agreed = len(self._seen)


def make_drafter(
    model: CausalLM,
    *,
    prompt_lookup: int | bool | None,
    draft_model: CausalLM | DraftModel | None,
    num_draft_tokens: int,
) -> Drafter | None:
    """The drafter that `stream_generate` was asked for, if any; InputError if it cannot draft for `model`."""
    if draft_model is None:
        if prompt_lookup is None:
            return None
        return PromptLookup(most_guesses(model) if prompt_lookup is True else int(prompt_lookup))
    if prompt_lookup is not None:
        raise InputError("prompt_lookup and draft_model are two ways to guess: choose one")
    drafter = draft_model
    if isinstance(drafter, CausalLM):
        drafter = DraftModel(drafter, num_draft_tokens)
    if not isinstance(drafter, DraftModel):
        raise InputError(f"draft_model is a {type(drafter).__name__}: expected a model, the first of what load() gives")
    ours, theirs = model.config.vocab_size, drafter.model.config.vocab_size
    if ours != theirs:
        raise InputError(f"the draft model has {theirs} tokens, the model {ours}: they must share one tokenizer")
    return drafter


def most_guesses(model: CausalLM) -> int:
    """Tokens of prompt lookup that, with the one before them, cost the device's attention little more than one."""
    config = model.config
    tokens = device.few_queries(config.num_attention_heads // config.num_key_value_heads)
    return PROMPT_LOOKUP if tokens is None else max(min(tokens - 1, PROMPT_LOOKUP), 1)


def check_same_tokenizer(tokenizer: Tokenizer, draft: Tokenizer) -> None:
    """InputError if the draft model's tokenizer is not the model's own."""
    if tokenizer.vocab_size != draft.vocab_size:
        found = f"knows {draft.vocab_size} tokens, the model's {tokenizer.vocab_size}"
    elif tokenizer.encode(PROBE) != draft.encode(PROBE) or tokenizer.special_tokens != draft.special_tokens:
        found = "gives other ids than the model's"
    else:
        return
    raise InputError(f"the draft model's tokenizer {found}: use a smaller model of the same family")
