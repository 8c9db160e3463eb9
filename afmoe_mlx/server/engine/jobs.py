"""What goes to the engine and comes back from it: `Job` and `Piece`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..errors import RequestError
from ..question import Progress, TokenLogprob
from .rendering import Rendered


@dataclass(frozen=True)
class Piece:
    """A token of one of a job's answers."""

    index: int
    """Of its question."""
    token: int
    text: str
    """What became final with it; may be empty."""
    prompt_tokens: int
    cached_tokens: int
    generation_tokens: int
    finish_reason: str | None = None
    """With the last: "stop" or "length"."""
    stop: str | None = None
    """The stop text that ended it, if one did."""
    violation: str | None = None
    logprob: TokenLogprob | None = None
    """If it was asked for."""


@dataclass(frozen=True)
class PromptRead:
    """More of the prompt of one of a job's answers."""

    index: int
    """Of its question."""
    progress: Progress


Told = Piece | PromptRead | RequestError


@dataclass(eq=False)
class Job:
    """A request on its way through the engine."""

    questions: Sequence[Rendered]
    owner: str
    """Whose prefixes it may know."""
    rows: int
    """How many are to be begun together."""
    needed: int
    """Bytes that they may come to need."""
    longest: int
    """Tokens that one of them may come to have, with its prompt."""
    tell: Callable[[Told], None]
    """Called in the event loop's thread; after an error nothing more comes."""
    open: int = 0
    """Answers that have been begun and are not over."""
    is_over: bool = False


Delivery = list[tuple[Job, Told]]
