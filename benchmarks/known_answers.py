"""Questions to the built-in model, of random lengths, and their answers, computed alone in this process."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import afmoe_mlx  # before MLX, so that MLX finds the fast BLAS

# isort: split
import mlx.core as mx
from protocols import Asked, check

MODEL = "demo"
CLOSE = 1e-4
"""Log-probabilities that may change places with what else is in a batch."""
WORDS = "what is the model of a token and how does an expert or a layer of it attend to your text in memory".split()


class Known(NamedTuple):
    """A question whose answer was computed alone."""

    asked: Asked
    prompt_tokens: int
    text: str
    ties: Sequence[tuple[int, int]]
    """Characters at which tokens begin and end that were nearly others."""

    def compare(self, text: str, *, is_whole: bool) -> None:
        """WrongAnswerError unless a text is this one, or its beginning; or differs from a tie on."""
        expected = self.text if is_whole else self.text[: len(text)]
        if text == expected:
            return
        pairs = enumerate(zip(text, expected, strict=False))
        place = next((i for i, (a, b) in pairs if a != b), min(len(text), len(expected)))
        tied = any(begins <= place <= ends for begins, ends in self.ties)
        here = slice(max(place - 20, 0), place + 20)
        check(tied, "differs at", place, repr(text[here]), "from", repr(self.text[here]))


def known_questions(folder: Path, count: int, chance: random.Random) -> list[Known]:
    model, tokenizer = afmoe_mlx.load(str(folder))
    return [_known(model, tokenizer, chance) for _ in range(count)]


def _known(model: Any, tokenizer: Any, chance: random.Random) -> Known:
    (length,) = chance.choices((3, 8, 20, 60, 150, 400, 1000), weights=(8, 8, 8, 6, 4, 2, 1))
    messages = [{"role": "user", "content": " ".join(chance.choices(WORDS, k=length)) + "?"}]
    if chance.random() < 0.4:
        messages.insert(0, {"role": "system", "content": "Answer in " + chance.choice(WORDS)})
    if chance.random() < 0.3:
        answered = [{"role": "assistant", "content": "A token."}, {"role": "user", "content": "And what is AFMoE?"}]
        messages += answered
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    limit, text, ties = chance.choice((1, 5, 20, 60, 120)), "", []
    for chunk in afmoe_mlx.stream_generate(model, tokenizer, prompt, max_tokens=limit):
        second, first = mx.topk(chunk.logprobs, 2).tolist()
        if abs(first - second) <= CLOSE:
            ties.append((len(text), len(text + chunk.text)))
        text += chunk.text
    shown = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return Known(Asked(MODEL, messages, shown, limit), len(prompt), text, ties)
