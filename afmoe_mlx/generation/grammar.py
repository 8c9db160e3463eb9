"""The options that constrain an answer, and the grammar that they make: what the library llguidance is handed."""

import json
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from ..errors import InputError
from ..messages.reasoning import CLOSE, OPEN, opened_by, split_thinking
from ..tokenizer import Tokenizer
from ..tokenizer.guidance import Guidance
from . import schema as schemas
from .constraint import Constraint

# Line ends between a thought and the answer, as templates and models write them.
_BREAK = r"/\n{0,4}/"
# Tokens at the end of a prompt that tell whether a thought is over.
TAIL = 16


@dataclass(frozen=True)
class ConstraintOptions:
    """What an answer is held to: JSON that satisfies a schema, a regular expression, or a grammar in llguidance's Lark.

    One of them at most. InputError for what cannot be enforced or satisfied, by name.
    """

    json_schema: Mapping[str, Any] | str | None = None
    """The schema, or its JSON text."""
    regex: str | None = None
    """Which matches all of the answer; the syntax is that of Rust's regex crate."""
    grammar: str | None = None

    def __post_init__(self) -> None:
        given = [field.name for field in fields(self) if getattr(self, field.name) is not None]
        if len(given) > 1:
            raise InputError(f"{' and '.join(given)} both constrain the answer: choose one")
        for name in ("regex", "grammar"):
            if not isinstance(value := getattr(self, name), str | None):
                raise InputError(f"{name} is {reprlib.repr(value)}: expected text")
        if self.json_schema is not None:
            object.__setattr__(self, "json_schema", schemas.parse_schema(self.json_schema))
        if given:
            _ = self.is_checked_afterwards

    @property
    def is_given(self) -> bool:
        """Whether anything is constrained."""
        return any(getattr(self, field.name) is not None for field in fields(self))

    @cached_property
    def is_checked_afterwards(self) -> bool:
        """Whether the grammar allows more than the schema does; InputError for a grammar that is none."""
        from llguidance import LLMatcher

        is_wrong, messages = LLMatcher.validate_grammar_with_warnings(_serialized(self._rules))
        if is_wrong:
            name = next(field.name for field in fields(self) if getattr(self, field.name) is not None)
            raise InputError(f"{name}: {self._in_words(messages[0])}")
        if isinstance(self.json_schema, dict) and schemas.never_ends(self.json_schema):
            raise InputError("json_schema: nothing can satisfy it: what it requires holds itself without end")
        return any("oneOf" in message for message in messages)

    def begin(self, tokenizer: Tokenizer, vocab_size: int, prompt: Sequence[int]) -> Callable[..., Constraint]:
        """Begin to make what a constraint needs, in a thread; what is given makes one, for an answer to `prompt`.

        It holds from the end of the reasoning on, which the prompt has opened, or which the model may begin with where
        its template knows of it; at once if it is told that the reasoning is over.
        """
        guidance = tokenizer.guidance(vocab_size)
        opened = bool(opened_by(tokenizer, prompt))
        is_over = tokenizer.decode(prompt[-TAIL:]).rstrip().endswith(CLOSE)
        may_think = OPEN in (tokenizer.chat_template or "") and not is_over

        def make(after_reasoning: bool = False) -> Constraint:
            thought = {} if after_reasoning else {"opened": opened, "may_think": may_think}
            return Constraint(guidance, self.grammar_for(tokenizer, guidance, **thought))

        return make

    def grammar_for(
        self, tokenizer: Tokenizer, guidance: Guidance, *, opened: bool = False, may_think: bool = False
    ) -> str:
        """As llguidance has it, after the reasoning: opened by the prompt, or one that the model may begin with."""
        if not (opened or may_think):
            return _serialized(self._rules)
        start = (
            f"thought {_BREAK} @answer" if opened else f"({_tag(OPEN, tokenizer, guidance)} thought {_BREAK})? @answer"
        )
        close = _tag(CLOSE, tokenizer, guidance)
        # a tag that is no token of its own ends the thought where it is complete first
        lazy, thought = ("", f"/(?s:.*)/ {close}") if close.startswith("<") else ("[lazy]", r"/(?s:.*)<\/think>/")
        lark = f"start: {start}\nthought{lazy}: {thought}\n"
        return _serialized({"lark_grammar": lark}, {"name": "answer", **self._rules})

    def violation(self, text: str, *, is_complete: bool) -> str | None:
        """What is wrong with an answer, its reasoning included, in a line; is_complete: as its constraint says."""
        if not is_complete:
            return "it ends before it is complete"
        if self.is_checked_afterwards and isinstance(self.json_schema, dict):
            return schemas.violation(self.json_schema, split_thinking(text)[1])
        return None

    @cached_property
    def _rules(self) -> dict[str, Any]:
        from llguidance import LLMatcher

        if isinstance(self.json_schema, dict):
            return {"json_schema": schemas.with_layout(self.json_schema)}
        if self.regex is not None:
            (rules,) = json.loads(LLMatcher.grammar_from_regex(self.regex))["grammars"]
            return {"lark_grammar": rules["lark_grammar"]}
        return {"lark_grammar": self.grammar}

    def _in_words(self, message: str) -> str:
        """A message of llguidance as a line."""
        lines = [line.strip() for line in message.splitlines()]
        reason = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), lines[0])
        return schemas.in_words(self.json_schema, reason) if isinstance(self.json_schema, dict) else reason


CONSTRAINT = tuple(field.name for field in fields(ConstraintOptions))


def _serialized(*grammars: Mapping[str, Any]) -> str:
    return json.dumps({"grammars": grammars})


def _tag(tag: str, tokenizer: Tokenizer, guidance: Guidance) -> str:
    """A tag in a Lark grammar: a token of its own where the library sees one, else text."""
    token = tokenizer.token_to_id(tag)
    if token is not None and guidance.tokenizer.is_special_token(token):
        return f"<[{token}]>"
    return json.dumps(tag)
