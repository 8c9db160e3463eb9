"""What may come next in one answer, by a grammar: what stands between its tokens and the library llguidance."""

import re
from collections.abc import Set

import mlx.core as mx

from ..errors import InputError
from ..tokenizer.guidance import Guidance

# What ends a part of JSON, in the order in which a short way to its end takes it: between values, and within a text,
# where the letter may come.
BETWEEN, WITHIN, LETTER = ("}", "]", '"', ","), ('"', ":"), "a"
# Tokens that an answer keeps beyond those that end it, when its limit is near: within a part, and between two, where
# another one would take more, but a quarter of the limit at most; and those of such an end at most.
MARGIN, MARGIN_BETWEEN = 8, 32
LONGEST_END = 512
# A text, number or list that repeats up to so many tokens over and over, for so many, goes round in circles.
LONGEST_PERIOD, CIRCLES = 8, 48
# As llguidance marks an allowed token.
ALLOWED = 200


class Constraint:
    """How far an answer has come in its grammar; one for each sequence, and nothing of a decode loop in it.

    A loop asks `forced` for tokens that must come, which it takes without a draw and so without randomness, all of
    them, one after the other. Where there are none it draws from the logits under `mask`. Either way each token is then
    told to `advance`, and `forced` is asked again. An answer ends with one of the tokenizer's ends, which is allowed
    where the grammar is satisfied. `copy` gives one that goes on by itself, to try guesses on.
    """

    def __init__(self, guidance: Guidance, grammar: str) -> None:
        """grammar: as llguidance has it. Waits for the library's tokenizer. InputError for a grammar that is none."""
        from llguidance import LLMatcher

        self._matcher = LLMatcher(guidance.tokenizer, grammar, log_level=0)
        self._ends, self._vocab_size = guidance.ends, guidance.vocab_size
        self._between, self._within, (self._letter,) = (
            [guidance.tokenizer.tokenize_str(text)[0] for text in texts] for texts in (BETWEEN, WITHIN, LETTER)
        )
        self.count = 0
        """Tokens told so far."""
        self._tokens: list[int] = []
        self._repeats = [0] * LONGEST_PERIOD  # of the last tokens, how many in a row are those 1, 2, … before them
        self._patience = CIRCLES
        self.is_cut = False
        """Whether `forced` has brought the answer to its end because its limit was near."""
        self._limit = 0  # tokens that were left at first
        self._look_at: int | None = None  # those at which it is looked at again whether the end is near
        self._check()

    @property
    def is_complete(self) -> bool:
        """Whether the answer may end here: what has come satisfies the grammar."""
        return self._matcher.is_accepting()

    @property
    def is_finished(self) -> bool:
        """Whether nothing may come but the end."""
        return self._matcher.is_stopped()

    def forced(self, left: int | None = None) -> list[int]:
        """The tokens that must come now, in order and cut as the tokenizer does; [] where there is a choice.

        A part that goes round in circles, as greedy decoding may for ever, is ended if it may end here.
        left: tokens that the answer may still take. Where they would run out the answer is brought to its end, so that
        it satisfies its grammar, if there is a short way there: then that is what must come, and `is_cut` says so.
        """
        if self.is_finished:
            return list(self._ends) if len(self._ends) == 1 else []
        if found := self._matcher.compute_ff_tokens():
            return found
        if part := self._way_out():
            return part
        if left is None:
            return []
        if self._look_at is not None and left > self._look_at:
            return []
        self._limit = max(self._limit, left)
        end = self._short_end(left)
        margin = MARGIN_BETWEEN if end and end[0] in self._between[:2] else MARGIN
        slack = left - len(end) - min(margin, self._limit // 4)
        self._look_at = left - max(1, (slack if end else left // 4) // 2)
        self.is_cut = bool(end) and slack <= 0
        return end if self.is_cut else []

    def _way_out(self) -> list[int]:
        """Where a part goes round in circles, the tokens that end it; more than one, as of a pattern, after a while."""
        circling = max(self._repeats)
        if circling < self._patience:
            return []
        ends = {*self._between, self._within[0]}
        way = self._short_end(LONGEST_END)
        part = way[: 1 + next((i for i, token in enumerate(way) if token in ends), -1)]
        if len(part) > 1 and circling < 2 * CIRCLES:
            self._patience = 2 * CIRCLES
            return []
        self._repeats, self._patience = [0] * LONGEST_PERIOD, CIRCLES
        return part

    def _short_end(self, most: int) -> list[int]:
        """Tokens that end the answer, `most` at most; [] where it is complete, or where none were found."""
        matcher, tokens, tried = self._matcher.deep_copy(), list[int](), set[int]()
        while not matcher.is_accepting():
            found = matcher.compute_ff_tokens()
            if not found:
                allowed = matcher.compute_logit_bias()
                closers = self._within if allowed[self._letter] else self._between
                found = [token for token in closers if allowed[token]][:1]
                tried = set() if found else tried
                found = found or [_untried(allowed, tried)]
                if found == self._within[:1] and tokens[-2:] == found * 2:
                    return []  # a thought or the like, which a quote does not end
                tried.update(found)
            tokens += found
            if len(tokens) > min(most, LONGEST_END) or matcher.try_consume_tokens(found) < len(found):
                return []
        return tokens

    def mask(self) -> mx.array:
        """Which tokens may come now: (vocab,) bool, at least one true."""
        allowed = self._matcher.compute_logit_bias()
        self._check()
        return mx.array(memoryview(allowed)[: self._vocab_size]) != 0  # type: ignore[arg-type]

    def accepts(self, token: int) -> bool:
        """Whether a token may come now; if so, it has come."""
        if self.is_finished:
            taken = token in self._ends
        else:
            taken = self._matcher.try_consume_tokens([token]) == 1
            self._check()
        if taken:
            for i in range(min(LONGEST_PERIOD, self.count)):
                self._repeats[i] = self._repeats[i] + 1 if self._tokens[-1 - i] == token else 0
            self._tokens = [*self._tokens[1 - LONGEST_PERIOD :], token]
            self.count += 1
        return taken

    def advance(self, token: int) -> None:
        """Go on after a token; InputError for one that may not come, as a sampler of the caller's may choose."""
        if not self.accepts(token):
            raise InputError(f"token {token} was chosen, which the constraint forbids here: expected an allowed one")

    def copy(self) -> "Constraint":
        """One that goes on from here by itself."""
        other = object.__new__(Constraint)
        other.__dict__ |= self.__dict__ | {"_matcher": self._matcher.deep_copy(), "_repeats": [*self._repeats]}
        return other

    def _check(self) -> None:
        if error := self._matcher.get_error():
            # what comes after these is the library's state, or all tokens that there are
            reason = " ".join(re.split("<state>|; following special tokens", error)[0].split())
            raise InputError(f"the constraint cannot be followed: {reason}: expected another one, or a simpler one")


def _untried(allowed: bytes, tried: Set[int]) -> int:
    """The first token that is allowed and was not tried, if there is one: in a pattern, what it wants comes in turn."""
    first = token = allowed.index(ALLOWED)
    while token in tried:
        token = allowed.find(ALLOWED, token + 1)
    return first if token < 0 else token
