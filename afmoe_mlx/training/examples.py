"""What a model is taught by: chats, completions, tools or texts, as tokens."""

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import AfmoeError, InputError
from ..messages import for_template
from ..tokenizer import Tokenizer
from ..values import listed
from .datasets import Row

# By the first of which all keys are there, a dataset's form: what mlx-lm's datasets look for.
FORMS = (("prompt", "completion"), ("messages",), ("text",))


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
    """Rows as tokens, as mlx-lm makes them, each ended as its chat template, or for a text the model, ends it.

    A row is {"messages": […]}, with "tools" or without, {"prompt": …, "completion": …} or {"text": …}, all of a dataset
    alike; messages are in OpenAI's form, and become what they are when the model is asked. mask_prompt: all before the
    last message, or the completion, is read and not learned. InputError, naming the row, for what is none of these.
    """
    if not rows:
        return []
    form = _form(*rows[0])
    if form == ("text",) and mask_prompt:
        raise InputError(f"{rows[0][0]}: a text has no prompt: leave out --mask-prompt")
    examples = []
    for i, (origin, row) in enumerate(rows, 1):
        _check(origin, row, form)
        examples.append(_example(origin, row, form, tokenizer, mask_prompt=mask_prompt))
        if on_progress is not None and (i % 64 == 0 or i == len(rows)):
            on_progress(i, len(rows))
    return examples


def check_tokens(examples: Sequence[Example], vocab_size: int) -> None:
    """InputError for a token that a model of so many does not know, which another model's tokenizer makes."""
    for example in examples:
        if (token := max(example.tokens)) >= vocab_size:
            found = f"{example.origin}: token {token}, and the model knows {vocab_size}"
            raise InputError(f"{found}: expected its own tokenizer in its folder")


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
    if not isinstance(row.get("tools"), list | None):
        raise InputError(f"{origin}: tools: expected a list of JSON schemas")


def _example(
    origin: str, row: Mapping[str, Any], form: tuple[str, ...], tokenizer: Tokenizer, *, mask_prompt: bool
) -> Example:
    try:
        if form == ("text",):
            tokens, start = _ended(tokenizer.encode(row["text"]), tokenizer.eos_token_id), 0
        else:
            tokens, start = _chat(_messages(row, form), row.get("tools"), tokenizer, mask_prompt=mask_prompt)
    except AfmoeError as error:
        raise InputError(f"{origin}: {error}") from None
    if start >= len(tokens) or len(tokens) < 2:
        raise InputError(f"{origin}: nothing to learn: {len(tokens)} tokens, of which {start} are the prompt")
    return Example(array("i", tokens), start, origin)


def _ended(tokens: list[int], eos: int | None) -> list[int]:
    return tokens if eos is None or tokens[-1:] == [eos] else [*tokens, eos]


def _messages(row: Mapping[str, Any], form: tuple[str, ...]) -> list[Mapping[str, Any]]:
    if form == ("messages",):
        return row["messages"]
    return [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]


def _chat(
    messages: Sequence[Mapping[str, Any]], tools: Any, tokenizer: Tokenizer, *, mask_prompt: bool
) -> tuple[list[int], int]:
    """A chat's tokens, and how many of them are the prompt."""
    plain = for_template(messages, tokenizer)
    tokens = tokenizer.apply_chat_template(plain, tools=tools)
    if not mask_prompt:
        return tokens, 0
    if plain[-1].get("role") != "assistant":
        raise InputError("the last message is no answer, which is what --mask-prompt learns")
    prompt = tokenizer.apply_chat_template(plain[:-1], tools=tools, add_generation_prompt=True)
    # a template may begin an answer as this one does not, with <think>
    differs = (i for i, pair in enumerate(zip(prompt, tokens, strict=False)) if pair[0] != pair[1])
    return tokens, next(differs, len(prompt))
