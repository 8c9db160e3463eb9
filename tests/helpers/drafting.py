"""Drafters that are right and wrong as told, and what a run with one has done."""

import random
from typing import Any

from hypothesis import strategies as st

from afmoe_mlx.generation import SamplingOptions
from afmoe_mlx.generation.pace import Pace
from helpers.command_line import invoke


class Always(Pace):
    """Drafts whatever it costs, so many tokens as a series of random numbers says."""

    def __init__(self, most: int, seed: int = 0) -> None:
        super().__init__(most)
        self._random = random.Random(seed)

    def length(self, most: int, behind: int = 0) -> int:
        return self._random.randint(0, max(most, 0))

    def drafted(self, length: int, accepted: int, seconds: float) -> None:
        pass


def run(*arguments: str) -> Any:
    return invoke(list(arguments))


PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]

OPTIONS = st.builds(
    SamplingOptions,
    temperature=st.sampled_from([0.0, 0.7, 1.5]),
    top_p=st.sampled_from([1.0, 0.8]),
    min_p=st.sampled_from([0.0, 0.05]),
    top_k=st.sampled_from([0, 5]),
    xtc_probability=st.sampled_from([0.0, 0.5]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    repetition_context_size=st.sampled_from([4, 20, 0]),
    presence_penalty=st.sampled_from([0.0, 0.6]),
    frequency_penalty=st.sampled_from([0.0, 0.3]),
    frequency_context_size=st.sampled_from([4, 0]),
    no_repeat_ngram_size=st.sampled_from([0, 2, 3]),
    logit_bias=st.sampled_from([None, {3: 2.0, 9: float("-inf")}]),
    seed=st.integers(0, 100),
)
