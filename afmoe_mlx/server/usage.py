"""`Usage`: the tokens of a request's answers together, from which each protocol makes its own form."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from .question import Finish


@dataclass(frozen=True)
class Usage:
    """Tokens. The reasoning's are among the completion's, the cached among the prompt's."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0

    @classmethod
    def of(cls, prompts: Iterable[Finish], answers: Iterable[Finish]) -> Self:
        """prompts: an answer to each prompt; answers: all there are, of which several may be to one prompt."""
        asked, told = list(prompts), list(answers)
        return cls(
            sum(finish.prompt_tokens for finish in asked),
            sum(finish.cached_tokens for finish in asked),
            sum(finish.completion_tokens for finish in told),
            sum(finish.reasoning_tokens for finish in told),
        )
