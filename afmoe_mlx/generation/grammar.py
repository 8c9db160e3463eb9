"""The options that constrain an answer, and the grammar that they make: what the library llguidance is handed."""

import json
import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from ..errors import InputError
from ..messages.reasoning import CLOSE, OPEN, opened_by, split_thinking
from ..messages.tool_formats import format_of
from ..messages.tools import argument_schemas
from ..tokenizer import Tokenizer
from ..tokenizer.guidance import Guidance
from . import schema as schemas
from .constraint import Constraint
from .schema_check import violation
from .tool_grammar import arguments_schema, tool_grammars

# Line ends between a thought and the answer, as templates and models write them.
_BREAK = r"/\n{0,4}/"
# Tokens at the end of a prompt that tell whether a thought is over.
TAIL = 16


@dataclass(frozen=True)
class ConstraintOptions:
    """What an answer is held to: JSON that satisfies a schema, a regular expression, a grammar, or calls of tools.

    One of them at most, but for a schema and "auto" tools: the answer then is either the JSON or calls. InputError for
    what cannot be enforced or satisfied, by name.
    """

    json_schema: Mapping[str, Any] | str | None = None
    """The schema, or its JSON text."""
    regex: str | None = None
    """Which matches all of the answer; the syntax is that of Rust's regex crate."""
    grammar: str | None = None
    """In llguidance's Lark."""
    tools: Sequence[Mapping[str, Any]] | None = None
    """In OpenAI's form; they constrain nothing by themselves."""
    tool_choice: Mapping[str, Any] | str | None = None
    """"required": one call or more; {"type": "function", "function": {"name": …}}: one of this tool; "auto" and "none",
    which is a matter of the prompt, constrain nothing; "auto" leaves a schema the choice of calls."""

    def __post_init__(self) -> None:
        given = [name for name in RULES if getattr(self, name) is not None]
        given += ["tool_choice"] if self._called else []
        if len(given) > 1:
            raise InputError(f"{' and '.join(given)} both constrain the answer: choose one")
        for name in ("regex", "grammar"):
            if not isinstance(value := getattr(self, name), str | None):
                raise InputError(f"{name} is {reprlib.repr(value)}: expected text")
            if any("\ud800" <= character <= "\udfff" for character in value or ""):
                raise InputError(f"{name} has a lone surrogate (damaged UTF-8): expected text")
        if (len(self.regex or "") - len((self.regex or "").rstrip("\\"))) % 2:  # the library would leave it out
            raise InputError("regex: it ends in a backslash that escapes nothing: expected \\\\ for one itself")
        if self.json_schema is not None:
            object.__setattr__(self, "json_schema", schemas.parse_schema(self.json_schema))
        for name, schema in (self._called or self._callable).items():
            _validated(f"tools: {name}: ", {"json_schema": arguments_schema(schema)}, schema)
        if self.is_given:
            _ = self.is_checked_afterwards

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "ConstraintOptions":
        """Those among the options of `stream_generate`."""
        return cls(**{field.name: options.get(field.name) for field in fields(cls)})

    @property
    def is_given(self) -> bool:
        """Whether anything is constrained."""
        return is_constrained(vars(self))

    @cached_property
    def is_checked_afterwards(self) -> bool:
        """Whether the grammar allows more than the schema does; InputError for a grammar that is none."""
        if self._called:
            return False
        name = next(name for name in RULES if getattr(self, name) is not None)
        schema = self.json_schema if isinstance(self.json_schema, dict) else None
        warnings = _validated(f"{name}: ", self._rules, schema)
        if schema is not None and schemas.never_ends(schema):
            raise InputError("json_schema: nothing can satisfy it: what it requires holds itself without end")
        return any("oneOf" in warning for warning in warnings)

    def begin(self, tokenizer: Tokenizer, vocab_size: int, prompt: Sequence[int]) -> Callable[..., Constraint]:
        """Begin to make what a constraint needs, in a thread; what is given makes one, for an answer to `prompt`.

        It holds from the end of the reasoning on, which the prompt has opened, or which the model may begin with where
        its template knows of it; at once if it is told that the reasoning is over.
        """
        if (self._called or self._callable) and format_of(tokenizer) is None:
            raise InputError("tool_choice: this model's chat template knows no tools: expected one that does")
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
        rules, *others = self._rules_for(tokenizer, guidance)
        if not (opened or may_think):
            return _serialized(rules, *others)
        start = (
            f"thought {_BREAK} @answer" if opened else f"({_tag(OPEN, tokenizer, guidance)} thought {_BREAK})? @answer"
        )
        close = _tag(CLOSE, tokenizer, guidance)
        # a tag that is no token of its own ends the thought where it is complete first
        lazy, thought = ("", f"/(?s:.*)/ {close}") if close.startswith("<") else ("[lazy]", r"/(?s:.*)<\/think>/")
        lark = f"start: {start}\nthought{lazy}: {thought}\n"
        return _serialized({"lark_grammar": lark}, {"name": "answer", **rules}, *others)

    def _rules_for(self, tokenizer: Tokenizer, guidance: Guidance) -> list[dict[str, Any]]:
        """The grammars of the answer proper, of which the first uses the others."""
        if not (schemas_of := self._called or self._callable):
            return [self._rules]
        form, many = format_of(tokenizer), self.tool_choice in ("required", "auto")
        assert form is not None  # `begin` has looked
        calls, *values = tool_grammars(form, schemas_of, lambda tag: _tag(tag, tokenizer, guidance), many=many)
        if self._called:
            return [calls, *values]
        either = {"lark_grammar": "start: @calls | @json\n"}
        return [either, {"name": "calls", **calls}, {"name": "json", **self._rules}, *values]

    def violation(self, text: str, *, is_complete: bool) -> str | None:
        """What is wrong with an answer, its reasoning included, in a line; is_complete: as its constraint says."""
        if not is_complete:
            return "it ends before it is complete"
        answer = split_thinking(text)[1]
        is_calls = bool(self._callable) and answer.startswith("<")  # no JSON does
        if self.is_checked_afterwards and isinstance(self.json_schema, dict) and not is_calls:
            return violation(self.json_schema, answer)
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

    @cached_property
    def _called(self) -> dict[str, Mapping[str, Any]]:
        """The tools of which one must be called, by name, with the schemas of their arguments."""
        if self.tool_choice is None or self.tool_choice in ("auto", "none"):
            return {}
        offered = argument_schemas(self.tools or [])
        if self.tool_choice == "required":
            if not offered:
                raise InputError("tool_choice is 'required', and there are no tools: expected some")
            return offered
        function = self.tool_choice.get("function") if isinstance(self.tool_choice, Mapping) else None
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(name, str) or name not in offered:
            found = name if isinstance(name, str) else self.tool_choice
            there = ", ".join(offered) or "there are none"
            expected = f"auto, none, required or a function by the name of a tool ({there})"
            raise InputError(f"tool_choice is {reprlib.repr(found)}: expected {expected}")
        return {name: offered[name]}

    @cached_property
    def _callable(self) -> dict[str, Mapping[str, Any]]:
        """The tools that may be called in place of the JSON, with the schemas of their arguments."""
        may_call = self.json_schema is not None and self.tool_choice == "auto"
        return argument_schemas(self.tools or []) if may_call else {}


# Those that say by themselves what the answer is.
RULES = ("json_schema", "regex", "grammar")
CONSTRAINT = tuple(field.name for field in fields(ConstraintOptions))


def is_constrained(options: Mapping[str, Any]) -> bool:
    """Whether options of `stream_generate` constrain anything; they are not looked at further."""
    has_choice = options.get("tool_choice") not in (None, "auto", "none")
    return has_choice or any(options.get(name) is not None for name in RULES)


def _validated(name: str, rules: Mapping[str, Any], schema: Mapping[str, Any] | None) -> list[str]:
    """What llguidance warns of; InputError, which begins with `name`, for what it refuses, by the schema if there is
    one."""
    from llguidance import LLMatcher

    if schema is not None and schemas.is_too_deep(schema):
        most = f"{schemas.DEEPEST:,} levels within each other, with references followed"
        raise InputError(f"{name}it may have more than {most}: expected a smaller one")
    grammar = _serialized(rules)
    is_wrong, messages = LLMatcher.validate_grammar_with_warnings(grammar)
    if is_wrong:
        lines = [line.strip() for line in messages[0].splitlines()]
        reason = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), lines[0])
        raise InputError(name + _in_words(reason, schema))
    if schema is None and _is_empty(grammar):
        raise InputError(f"{name}nothing can satisfy it: expected a form that some text has")
    return messages


def _is_empty(grammar: str) -> bool:
    """Whether a grammar allows no text, as far as its first byte tells; its tokens are a model's matter."""
    from llguidance import LLMatcher, LLTokenizer

    matcher = LLMatcher(LLTokenizer("byte"), grammar, log_level=0)
    if not matcher.is_error():
        matcher.compute_logit_bias()
    return matcher.get_error().startswith("NoExtensionBias")


def _in_words(reason: str, schema: Mapping[str, Any] | None) -> str:
    """What llguidance finds wrong, with what to do."""
    if re.search("look-?around", reason):
        return r"lookarounds, such as \b, (?=…) or ^ and $ within, cannot be enforced: leave them out"
    if schema is not None:
        return schemas.in_words(schema, reason)
    return f"{reason}: expected llguidance's syntax, for patterns that of Rust's crate regex"


def _serialized(*grammars: Mapping[str, Any]) -> str:
    return json.dumps({"grammars": grammars})


def _tag(tag: str, tokenizer: Tokenizer, guidance: Guidance) -> str:
    """A tag in a Lark grammar: a token of its own where the library sees one, else text."""
    token = tokenizer.token_to_id(tag)
    if token is not None and guidance.tokenizer.is_special_token(token):
        return f"<[{token}]>"
    return json.dumps(tag)
