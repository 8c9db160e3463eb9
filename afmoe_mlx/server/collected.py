"""`collect`: answers that are told once they are whole."""

from dataclasses import dataclass, field

from ..messages import Answer
from .question import Answering, Finish, TokenLogprob


@dataclass
class Collected:
    """All that has come of one answer."""

    finish: Finish
    answer: Answer = field(default_factory=Answer)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    """Of the tokens of its content."""


async def collect(answering: Answering) -> list[Collected]:
    """Whole answers, in the order of their questions. RequestError ends all of them."""
    answers: dict[int, Answer] = {}
    logprobs: dict[int, list[TokenLogprob]] = {}
    finishes: dict[int, Finish] = {}
    async with answering:
        async for update in answering:
            answer = answers.setdefault(update.index, Answer())
            for delta in update.deltas:
                answer.add(delta)
            logprobs.setdefault(update.index, []).extend(update.logprobs)
            if update.finish is not None:
                finishes[update.index] = update.finish
    return [Collected(finishes[index], answers[index], logprobs[index]) for index in sorted(finishes)]
