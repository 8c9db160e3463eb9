"""/v1/completions: texts that go on, whole or streamed."""

import time
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, StrictInt, model_validator

from ...messages import ContentDelta, Delta
from .. import sse
from ..collected import Collected, collect
from ..endpoint import Endpoint, EventStream, Handled
from ..fields import WHOLE, Flag, Integer, Several, TopLogprobs
from ..question import Call, Question, Service, Update
from . import logprobs
from .body import MOST_ANSWERS, AnswerBody
from .errors import error_body
from .stream import Chunks, usage_body, usage_of

Ids = Annotated[Several[Annotated[StrictInt, Field(ge=0)]], Field(min_length=1)]
Prompts = str | Ids | Annotated[Several[str], Field(min_length=1)] | Annotated[Several[Ids], Field(min_length=1)]


class CompletionBody(AnswerBody):
    """The fields of a request."""

    prompt: Prompts
    """A text or the ids of its tokens, or several."""
    logprobs: TopLogprobs | None = None
    best_of: Annotated[Integer, WHOLE] | None = None
    echo: Flag | None = None
    suffix: str | None = None

    @model_validator(mode="after")
    def _is_supported(self) -> Self:
        if self.suffix:
            raise ValueError("suffix is not supported: these models write from left to right")
        if self.echo:
            raise ValueError("echo is not supported: put the prompt before the answer yourself")
        if self.best_of is not None and self.best_of != self.answers:
            raise ValueError(f"best_of is {self.best_of}: expected as many as n, {self.answers}")
        if len(self.prompts) * self.answers > MOST_ANSWERS:
            raise ValueError(f"{len(self.prompts)} prompts with n {self.answers}: at most {MOST_ANSWERS} answers")
        return self

    @property
    def prompts(self) -> Sequence[str | list[int]]:
        """All of them."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        return [self.prompt] if isinstance(self.prompt[0], int) else self.prompt

    def questions(self) -> list[Question]:
        """One for each answer, those to a prompt together."""
        return [
            Question(prompt=prompt, options=self.options(choice), top_logprobs=self.logprobs)
            for prompt in self.prompts
            for choice in range(self.answers)
        ]


class CompletionChoice(BaseModel):
    """One of the answers; those to a prompt stand together."""

    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length"]


class Completion(BaseModel):
    """How the prompts go on."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: dict[str, Any]


async def handle(service: Service, body: CompletionBody, call: Call) -> Handled:
    """Answer a request."""
    head = {
        "id": f"cmpl-{call.id}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": service.name,
    }
    answering = await service.ask(body.questions(), call)
    if body.stream:
        chunks = TextChunks(
            head, call, prompts=len(body.prompts), answers=body.answers, includes_usage=body.includes_usage
        )
        return EventStream(await sse.begun(chunks.events(answering)), chunks.alive)
    answers = await collect(answering)
    return {
        **head,
        "choices": [_choice(index, one, with_logprobs=body.logprobs is not None) for index, one in enumerate(answers)],
        "usage": usage_body(usage_of({i: one.finish for i, one in enumerate(answers)}, body.answers)),
    }


def _choice(index: int, one: Collected, *, with_logprobs: bool) -> dict[str, Any]:
    return {
        "index": index,
        "text": _text_of(one.deltas),
        "logprobs": logprobs.of_text(one.logprobs, 0) if with_logprobs else None,
        "finish_reason": one.finish.reason,
    }


def _text_of(deltas: Sequence[Delta]) -> str:
    return "".join(delta.text for delta in deltas if isinstance(delta, ContentDelta))


class TextChunks(Chunks):
    """Chunks of a completion."""

    def __init__(self, head: dict[str, Any], call: Call, *, prompts: int, answers: int, includes_usage: bool) -> None:
        super().__init__(head, call, prompts=prompts, answers=answers, includes_usage=includes_usage)
        self._offsets = dict.fromkeys(range(prompts * answers), 0)  # of the next token, in characters

    def begin(self, index: int) -> Iterator[dict[str, Any]]:
        yield self.choice(index)

    def choices(self, update: Update) -> Iterator[dict[str, Any]]:
        text = _text_of(update.deltas)
        if not text and not update.logprobs:
            return
        told = None
        if update.logprobs:
            told = logprobs.of_text(update.logprobs, self._offsets[update.index])
            self._offsets[update.index] += sum(map(len, told["tokens"]))
        yield self.choice(update.index) | {"text": text, "logprobs": told}

    def choice(self, index: int, reason: str | None = None) -> dict[str, Any]:
        return {"index": index, "text": "", "logprobs": None, "finish_reason": reason}


COMPLETIONS = Endpoint("/v1/completions", CompletionBody, Completion, handle, error_body)
