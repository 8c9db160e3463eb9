"""What the batch engine is asked for and what it answers, and the choice of all rows' next tokens at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import mlx.core as mx

from ..cache import Cache, PrefixStore


@dataclass(eq=False)
class Request:
    """A prompt and its answer: a handle, made by `BatchEngine.add`, whose fields are for reading."""

    prompt: list[int]
    limit: int
    """Tokens that the answer has at most."""
    ends: frozenset[int]
    """Tokens that end it, each the answer's last."""
    choose: Any
    """What the engine's sampler knows of this row: its temperature, its seed and so on."""
    answer: list[int] = field(default_factory=list)
    """Tokens handed out; complete whenever the next is chosen."""
    known_tokens: int | None = None
    """Prompt tokens that the store knew when it was first asked, before they were needed."""
    cached_tokens: int = 0
    """Prompt tokens that the store knew, and were not run."""
    read_tokens: int = 0
    """Prompt tokens in the cache: all of them once the answer begins."""
    finish_reason: str | None = None
    """"stop", "length", "error" or "removed" once it is over."""
    cache: Cache | None = field(default=None, repr=False)
    """Where its prompt is read, until it joins the others."""
    row: int = field(default=0, repr=False)
    """Its row there."""
    has_cache: bool = field(default=False, repr=False)
    """Whether that was given with the request."""
    store: PrefixStore | None = field(default=None, repr=False)
    """What knows beginnings of its prompt, and keeps what is run."""
    mark: int = 0
    """How many of the prompt's tokens many others begin with, too, such as a system prompt; 0: that is not known."""
    ahead: "Ahead | None" = field(default=None, repr=False)
    """What guesses how its answer goes on while it is the only one."""

    @property
    def tokens(self) -> list[int]:
        """The prompt and what has been handed out."""
        return self.prompt + self.answer

    @property
    def is_begun(self) -> bool:
        """Whether its prompt has been begun, or will not be."""
        return self.read_tokens > 0 or self.is_over

    @property
    def is_over(self) -> bool:
        return self.finish_reason is not None

    def fail(self, error: Exception) -> "Event":
        """End by an error, and let go of what it holds."""
        self.finish_reason, self.cache, self.ahead = "error", None, None
        return Event(self, None, "error", error)


@dataclass(frozen=True)
class Event:
    """A token of a request, or its failure."""

    request: Request
    token: int | None
    """None where it failed."""
    finish_reason: str | None = None
    """Why this is the last: "stop", "length" or "error"; None where more follow."""
    error: Exception | None = None
    chosen: "Pending | None" = field(default=None, repr=False)
    """The tokens of all rows that it was among."""

    @property
    def logprobs(self) -> mx.array | None:
        """(vocab,) float32, what the token was drawn from, before any filter."""
        # cut out when asked for: in a thread other than the engine's, a slice made there could not be evaluated
        return None if self.chosen is None else self.chosen.logprobs[self.chosen.rows.index(self.request)]


@dataclass(frozen=True)
class Chosen:
    """The next token of every row."""

    tokens: mx.array
    """(B,) integers; any token in a row that failed."""
    logprobs: mx.array
    """(B, vocab) float32, what the tokens were drawn from, before any filter."""
    failed: Mapping[int, Exception] = field(default_factory=dict)
    """Rows, by their indices, that could not choose: they end, the others go on."""


@dataclass(frozen=True)
class Pending:
    """The next tokens of some rows, chosen and not handed out."""

    rows: list[Request]
    tokens: mx.array
    """(B,)"""
    logprobs: mx.array
    """(B, vocab)"""

    def ordered(self, rows: list[Request]) -> "Pending | None":
        """Those of `rows`, which are among its own, in their order; None of no rows."""
        if rows == self.rows or not rows:
            return self if rows else None
        places = {row: i for i, row in enumerate(self.rows)}
        order = mx.array([places[row] for row in rows])
        return Pending(rows, self.tokens[order], self.logprobs[order])

    def without_ended(self) -> "Pending | None":
        return self.ordered([row for row in self.rows if not row.is_over])

    @staticmethod
    def joined(parts: "Sequence[Pending]") -> "Pending | None":
        """All of several, one after the other."""
        if len(parts) < 2:
            return parts[0] if parts else None
        rows = [row for part in parts for row in part.rows]
        logprobs = mx.concatenate([part.logprobs for part in parts])
        return Pending(rows, mx.concatenate([part.tokens for part in parts]), logprobs)


class Ahead(Protocol):
    """Runs guessed tokens of a row that is the only one, whose draws are those of the engine's sampler."""

    def run(self, row: Request, cache: Cache, token: mx.array) -> list[tuple[int, mx.array]]:
        """Run the row's next token (1,), not handed out yet, and guesses in a step.

        The tokens drawn after it, with their log-probabilities (vocab,): all but the last are in the cache. Empty where
        there is nothing to guess: a plain step is to be made.
        """

    def ran_plainly(self) -> None:
        """The plain step has been made."""


class RowSampler(Protocol):
    """Chooses the next token of every row at once, as each would for itself."""

    def __call__(self, logits: mx.array, rows: Sequence[Request]) -> Chosen:
        """By logits (B, vocab), lazily. `row.tokens` are all that come before, and `row.choose` is what it was given.

        Called while the device computes the logits: whatever the host does here takes no time of its own.
        """
        ...


def greedy_rows(logits: mx.array, rows: Sequence[Request]) -> Chosen:
    """The likeliest token of each row."""
    logits = logits.astype(mx.float32)
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    return Chosen(mx.argmax(logprobs, axis=-1), logprobs)
