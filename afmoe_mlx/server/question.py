"""What a client asks and what it is told, apart from any protocol: `Question`, `Update`, and the `Service` between."""

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

from ..messages import Delta


@dataclass(frozen=True)
class Question:
    """One answer that is asked for."""

    messages: Sequence[Mapping[str, Any]] = ()
    """A conversation in OpenAI's form, for the chat template; unless there is a `prompt`."""
    prompt: str | Sequence[int] | None = None
    """A text or token ids as they are."""
    tools: Sequence[Mapping[str, Any]] | None = None
    """Functions in OpenAI's form, that the template shows to the model."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Those of `stream_generate`; `max_tokens` None or missing: the server's own."""
    template_variables: Mapping[str, Any] = field(default_factory=dict)
    """Such as `enable_thinking`; those that the template does not know are left out."""
    continues: bool = False
    """Whether the answer goes on with the last message, an assistant's."""
    parallel_tool_calls: bool = True
    """Whether an answer may hold several calls of tools; if not, it ends with the first."""
    top_logprobs: int | None = None
    """How many of the likeliest tokens are told with each; 0: the token alone; None: no log-probabilities."""
    tells_progress: bool = False
    """Whether updates tell how far the prompt is read."""


@dataclass(frozen=True)
class TokenLogprob:
    """A token, by its text as bytes, and its log-probability; the likeliest in its place, if they were asked for."""

    token: int
    text: bytes
    logprob: float
    top: "Sequence[TokenLogprob]" = ()


@dataclass(frozen=True)
class Finish:
    """How an answer ended."""

    reason: str
    """"stop", "length" or "tool_calls"."""
    prompt_tokens: int
    cached_tokens: int
    """Of the prompt, those that were known and not run."""
    completion_tokens: int
    reasoning_tokens: int = 0
    stop_sequence: str | None = None
    """The stop text that ended it, if one did."""
    violation: str | None = None
    """What it falls short of in what it was held to."""


@dataclass(frozen=True)
class Progress:
    """How far a prompt is read, in tokens."""

    total: int
    cached: int
    """Of the total, those that were known and not run."""
    read: int
    """Of the total, those that were known included."""


@dataclass(frozen=True)
class Update:
    """What comes next of one of the answers: `index` is that of its question."""

    index: int
    deltas: Sequence[Delta] = ()
    logprobs: Sequence[TokenLogprob] = ()
    """Of the tokens of content whose text is in the deltas so far, and was not in those before."""
    finish: Finish | None = None
    """With the last."""
    progress: Progress | None = None
    """Before the first token, if it was asked for, when more of the prompt has been read."""


@dataclass
class Call:
    """A request on its way: who asks, and what the log and the metrics tell of it, never what was said."""

    id: str
    route: str
    owner: str = ""
    """Whose prefixes it may know: a digest of its key."""
    began: float = field(default_factory=time.perf_counter)
    first_token: float | None = None
    """Seconds until the first token of an answer."""
    seconds: float | None = None
    """Until the end."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reason: str | None = None
    """Why it ended: a `Finish.reason`, "removed" if the client went away, or an error's code."""


class Answering(Protocol):
    """Answers that are being written: updates until each question has its `Finish`. RequestError ends all of them.

    To leave the block, or to be cancelled in it, ends those that are not over: their rows are free within a step.
    """

    prompt_tokens: int
    """Of the first question."""
    cached_tokens: int
    """Of these, those that were known and not run, from the first question's first update on."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *error: object) -> None: ...

    def __aiter__(self) -> AsyncIterator[Update]: ...


class Service(Protocol):
    """The one model that is served."""

    name: str
    """The model's."""
    created: int
    """When it was loaded, in seconds since 1970."""
    context: int
    """Tokens of a prompt and its answer, at most."""

    @property
    def defaults(self) -> Mapping[str, float]:
        """How an answer is made whose question says nothing of it: options of `stream_generate`."""
        ...

    async def ask(self, questions: Sequence[Question], call: Call) -> Answering:
        """Take questions on, once they are rendered, checked and admitted. RequestError if they are not."""
        ...

    async def count_tokens(self, question: Question) -> int:
        """Tokens of a question's prompt. RequestError if it can be none."""
        ...
