"""`first_call_alone`: answers in which one tool is called at most, whatever else the model wrote."""

from collections.abc import AsyncIterator
from dataclasses import replace

from ..messages import CallEnd, Delta
from .question import Update


async def first_call_alone(updates: AsyncIterator[Update]) -> AsyncIterator[Update]:
    """Updates without what comes after the end of an answer's first call."""
    called: set[int] = set()
    async for update in updates:
        logprobs = () if update.index in called else update.logprobs
        deltas: list[Delta] = []
        for delta in () if update.index in called else update.deltas:
            deltas.append(delta)
            if isinstance(delta, CallEnd):
                called.add(update.index)
                break
        finish = update.finish
        if finish is not None and update.index in called:
            finish = replace(finish, reason="tool_calls")
        yield Update(update.index, deltas, logprobs, finish)
