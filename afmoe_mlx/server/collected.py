"""`collect`: answers that are told once they are whole."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..messages import Delta
from .question import Answering, Finish, TokenLogprob


@dataclass(frozen=True)
class Collected:
    """All that has come of one answer."""

    deltas: Sequence[Delta]
    logprobs: Sequence[TokenLogprob]
    """Of the tokens of its content."""
    finish: Finish


async def collect(answering: Answering) -> list[Collected]:
    """Whole answers, in the order of their questions. RequestError ends all of them."""
    deltas: dict[int, list[Delta]] = {}
    logprobs: dict[int, list[TokenLogprob]] = {}
    finishes: dict[int, Finish] = {}
    async with answering:
        async for update in answering:
            deltas.setdefault(update.index, []).extend(update.deltas)
            logprobs.setdefault(update.index, []).extend(update.logprobs)
            if update.finish is not None:
                finishes[update.index] = update.finish
    return [Collected(deltas[index], logprobs[index], finishes[index]) for index in sorted(finishes)]
