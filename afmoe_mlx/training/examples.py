"""What a model is taught by: chats, completions, tools or texts, as tokens."""

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from ..errors import AfmoeError, InputError
from ..tokenizer import Tokenizer
from ..values import listed
from .datasets import Row

# By the first of which all keys are there, a dataset's form: what mlx-lm's datasets look for.
FORMS = (("prompt", "completion"), ("messages",), ("text",))

Process = Callable[[Mapping[str, Any]], tuple[list[int], int]]


@dataclass(frozen=True)
class Example:
    """Tokens, of which those from `start` on are learned, and where they come from."""

    tokens: "array[int]"
    start: int
    origin: str

    def __len__(self) -> int:
        return len(self.tokens)


def make_examples(
    rows: Sequence[Row],
    tokenizer: Tokenizer,
    *,
    mask_prompt: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Example]:
    """Rows as tokens, by mlx-lm's rules, each ended as its chat template, or for a text the model, ends it.

    A row is {"messages": […]}, with "tools" or without, {"prompt": …, "completion": …} or {"text": …}, all of a dataset
    alike. mask_prompt: all before the last message, or the completion, is read and not learned. InputError, naming the
    row, for what is none of these.
    """
    if not rows:
        return []
    form = _form(*rows[0])
    if form == ("text",) and mask_prompt:
        raise InputError(f"{rows[0][0]}: a text has no prompt: leave out --mask-prompt")
    for origin, row in rows:
        _check(origin, row, form)
    from mlx_lm.tuner.datasets import create_dataset

    its: Any = tokenizer  # what it asks of one is what ours has
    process = create_dataset([rows[0][1]], its, SimpleNamespace(mask_prompt=mask_prompt)).process
    examples = []
    for i, (origin, row) in enumerate(rows, 1):
        examples.append(_example(origin, row, process))
        if on_progress is not None and (i % 64 == 0 or i == len(rows)):
            on_progress(i, len(rows))
    return examples


def _form(origin: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    for keys in FORMS:
        if row.keys() >= set(keys):
            return keys
    raise InputError(f"{origin}: an object with {listed(row)}: expected messages, prompt and completion, or text")


def _check(origin: str, row: Mapping[str, Any], form: tuple[str, ...]) -> None:
    for key in form:
        if key not in row:
            raise InputError(f"{origin}: an object with {listed(row)}: expected {' and '.join(form)}, as in the first")
        value = row[key]
        if key != "messages":
            if not isinstance(value, str):
                raise InputError(f"{origin}: {key} is no text")
        elif not value or not isinstance(value, list) or not all(isinstance(message, Mapping) for message in value):
            raise InputError(f"{origin}: messages: expected a list of objects with role and content")


def _example(origin: str, row: Mapping[str, Any], process: Process) -> Example:
    try:
        tokens, start = process(row)
    except AfmoeError as error:
        raise InputError(f"{origin}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise InputError(f"{origin}: {type(error).__name__}: {error}: expected what the chat template takes") from None
    if start >= len(tokens) or len(tokens) < 2:
        raise InputError(f"{origin}: nothing to learn: {len(tokens)} tokens, of which {start} are the prompt")
    return Example(array("i", tokens), start, origin)
