"""Answers to several prompts at once, printed as JSON lines in the order in which they are finished."""

import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

from .. import device
from ..generation import BatchAnswer, BatchAnswers, is_constrained
from ..terminal import is_terminal, note, write_json
from .answer import Answer, summary
from .progress import progress_bar
from .prompts_file import PromptLine


class PrintedBatch:
    """Prints each of several answers when it is finished: an object with `index`, from 0, and the line's `id`."""

    def __init__(self, batch: BatchAnswers, *, kept: bool) -> None:
        """kept: whether some of the prompts may be known."""
        self._batch, self._kept = batch, kept
        self._asked: dict[BatchAnswer, tuple[dict[str, Any], dict[str, bool], Answer]] = {}
        self._total = self._done = self._failed = 0

    def add(self, line: PromptLine, prompt: list[int], options: Mapping[str, Any], answer: Answer) -> None:
        """Ask for the answer to a line's prompt. Raises what `BatchAnswers.add` raises."""
        options = {**options, **line.options}
        named = {"index": self._total, **line.named}
        told = {
            "speculated": any(options.get(name) is not None for name in ("prompt_lookup", "draft_model")),
            "kept": self._kept,
            "held": is_constrained(options),
        }
        self._asked[self._batch.add(prompt, **options)] = named, told, answer
        self._total += 1

    def run(self) -> int:
        """Answer all; the exit status: 130 if interrupted, 1 if an answer failed."""
        bar = nullcontext() if is_terminal(sys.stdout) else progress_bar("answering")
        try:
            with bar as show, device.resident():
                if show is not None:
                    show(0, self._total)
                while self._batch:
                    self._step(show)
        except KeyboardInterrupt:
            note(f"Interrupted: {self._done} of {self._total} answers were finished")
            return 130
        return 1 if self._failed else 0

    def _step(self, show: Callable[[int, int], None] | None) -> None:
        for asked, made in self._batch.step():
            named, told, answer = self._asked[asked]
            if isinstance(made, Exception):
                write_json({**named, "error": str(made)})
                self._failed += 1
            else:
                answer.add(made)
                if made.finish_reason is None:
                    continue
                answer.end()
                write_json({**named, **summary(answer, **told)})
            del self._asked[asked]
            self._done += 1
            if show is not None:
                show(self._done, self._total)

    def tell(self) -> None:
        """A line on stderr: how much was done, and how fast."""
        stats, answers = self._batch.stats, "1 answer" if self._done == 1 else f"{self._done} answers"
        note(
            f"{answers}: {stats.prompt_tokens} tokens of prompts, {stats.generation_tokens} of answers, "
            f"{stats.generation_tps:.1f} tokens/s"
        )
