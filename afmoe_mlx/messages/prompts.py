"""From messages to a prompt's tokens, by the model's chat template."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..cache import shared_prefix
from ..tokenizer import Tokenizer
from .openai_form import Message, for_template
from .reasoning import opened_thinking


@dataclass(frozen=True)
class Prompt:
    """A rendered and encoded prompt, up to where the model answers."""

    tokens: list[int]
    opened: str
    """What of the answer the template itself has written: "<think>\\n", or nothing."""
    places: list[int]
    """Where other prompts will part from this one: before the last message's text, after it, and at the end."""


def ending(message: Mapping[str, Any]) -> str:
    """How an answer that is not whole has ended, in words: "stopped" or "cut off"; "" for a whole one."""
    return "stopped" if message.get("stopped") else "cut off" if message.get("cut_off") else ""


class Prompts:
    """Renders messages by a chat template and encodes them; the last encodings are kept: they are asked for again."""

    def __init__(self, tokenizer: Tokenizer, variables: dict[str, Any]) -> None:
        self.tokenizer, self.variables = tokenizer, variables
        self._encoded: dict[str, list[int]] = {}

    def prompt(self, messages: Sequence[Message]) -> Prompt:
        """The prompt that the last of `messages`, the user's, is answered to; TokenizerError if there can be none."""
        text = self._render(messages)
        tokens = self._encode(text)
        before = self._render(messages, add_generation_prompt=False)
        generation = text[len(before) :] if text.startswith(before) else ""
        opened = opened_thinking(generation)
        return Prompt(tokens, opened, self._places(messages, text, generation, len(tokens)))

    def count(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> int:
        """How many tokens the messages have."""
        return len(self._encode(self._render(messages, add_generation_prompt=add_generation_prompt)))

    def opening(self, system: Sequence[Message]) -> int:
        """How many tokens every conversation with this system message, or none, begins with."""
        first, second = (self._render([*system, {"role": "user", "content": content}]) for content in "ab")
        return shared_prefix(*(self.tokenizer.encode(text, add_special_tokens=False) for text in (first, second)))

    def knows_variable(self, name: str) -> bool:
        """Whether the chat template mentions a variable, such as enable_thinking."""
        return name in (self.tokenizer.chat_template or "")

    def _render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        plain = [{"role": message["role"], "content": message["content"]} for message in messages]
        plain = for_template(plain, self.tokenizer)
        variables = {name: value for name, value in self.variables.items() if self.knows_variable(name)}
        return self.tokenizer.apply_chat_template(
            plain, tokenize=False, add_generation_prompt=add_generation_prompt, **variables
        )

    def _encode(self, text: str) -> list[int]:
        if text not in self._encoded:
            # a template writes its own special tokens
            tokens = self.tokenizer.encode(text, add_special_tokens=False)
            self._encoded = dict([*self._encoded.items(), (text, tokens)][-2:])
        return self._encoded[text]

    def _places(self, messages: Sequence[Message], text: str, generation: str, length: int) -> list[int]:
        """See `Prompt.places`.

        Counted from the end, so that the last message alone is encoded again; a place that is not exact costs some work
        later, nothing else.
        """
        other = "b" if messages[-1]["content"].strip().startswith("a") else "a"
        parted = self._render([*messages[:-1], {"role": "user", "content": other}])
        ends = (text[shared_prefix(text, parted) :], generation)
        return [*(length - len(self.tokenizer.encode(end, add_special_tokens=False)) for end in ends), length - 1]
