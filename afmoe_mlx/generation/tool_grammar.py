"""The grammar of tool calls in a model's own format, their arguments held to the tools' schemas.

Values stand as JSON in every format, which is Python too but for true, false and null: alone these are written as the
format has them, within a list or a dict as JSON has them, which is read as well.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from ..messages.tool_formats import HERMES, PYTHONIC, ToolFormat
from ..messages.tools import argument_types
from .schema import with_layout

Schema = Mapping[str, Any]


def tool_grammars(form: ToolFormat, schemas: Mapping[str, Schema], tag: Callable[[str], str], *, many: bool) -> Any:
    """Grammars as llguidance has them, the first of which is the calls'.

    schemas: of the arguments, by the tools' names. tag: a mark of the format in Lark. many: several calls may come.
    """
    make = _Hermes if form is HERMES else _Pythonic if form is PYTHONIC else _Qwen3Coder
    return make(form, schemas, tag).grammars(many)


def arguments_schema(schema: Schema) -> dict[str, Any]:
    """What the arguments are held to: an object of the properties that a schema names, and no others."""
    closed = (
        {}
        if schema.keys() & {"anyOf", "oneOf", "allOf", "$ref", "patternProperties"}
        else {"additionalProperties": False}
    )
    return with_layout({"type": "object", **closed, **schema}, lenient=True)


class _Format(ABC):
    """Lark for the calls of some tools."""

    def __init__(self, form: ToolFormat, schemas: Mapping[str, Schema], tag: Callable[[str], str]) -> None:
        self.schemas = schemas
        self.begin, self.end = tag(form.begin), tag(form.end)
        self.lines: list[str] = []
        self.values: list[dict[str, Any]] = []

    def grammars(self, many: bool) -> list[dict[str, Any]]:
        names = [
            self.rule(f"call_{i}", self.call(name, schema)) for i, (name, schema) in enumerate(self.schemas.items())
        ]
        call = self.rule("call", " | ".join(names))
        lines = [f"start: {self.calls(call, many)}", *self.lines]
        return [{"lark_grammar": "\n".join(lines) + "\n"}, *self.values]

    def rule(self, name: str, body: str) -> str:
        self.lines.append(f"{name}: {body}")
        return name

    def value(self, schema: Schema) -> str:
        """A value in JSON."""
        self.values.append({"name": f"value_{len(self.values)}", "json_schema": schema})
        return f"@value_{len(self.values) - 1}"

    def argument(self, schema: Schema, name: str) -> str:
        """The value of one argument, in JSON; what its schema refers to is looked for in the whole."""
        one = schema.get("properties", {}).get(name, {})
        one = one if isinstance(one, Mapping) else {}
        shared = {key: schema[key] for key in ("$defs", "definitions", "$schema") if key in schema}
        return self.value(with_layout(shared | dict(one), lenient=True))

    def calls(self, call: str, many: bool) -> str:
        return f'{call} ("\\n" {call})*' if many else call

    @abstractmethod
    def call(self, name: str, schema: Schema) -> str:
        """One call of a tool."""


class _Hermes(_Format):
    def call(self, name: str, schema: Schema) -> str:
        head = _text(f'\n{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": ')
        return f"{self.begin} {head} {self.value(arguments_schema(schema))} {_text('}' + chr(10))} {self.end}"


class _Qwen3Coder(_Format):
    def call(self, name: str, schema: Schema) -> str:
        parts = [
            self._parameter(parameter, schema) + ("" if parameter in _required(schema) else "?")
            for parameter in schema.get("properties", {})
        ]
        head, tail = _text(f"\n<function={name}>\n"), _text("</function>\n")
        return " ".join([self.begin, head, *parts, tail, self.end])

    def _parameter(self, name: str, schema: Schema) -> str:
        types, head, tail = argument_types(schema, name), f"<parameter={name}>\n", "\n</parameter>\n"
        if types and "string" not in types:
            return f"({_text(head)} {self.argument(schema, name)} {_text(tail)})"
        one = schema["properties"][name]
        values = one.get("enum", [one["const"]] if "const" in one else None) if isinstance(one, Mapping) else None
        if isinstance(values, list) and all(isinstance(value, str) for value in values):
            return f"({_text(head)} ({' | '.join(map(_text, values))}) {_text(tail)})"
        if not any(line.startswith("text[") for line in self.lines):
            self.lines.append(r"text[lazy]: /(?s:.*)\n<\/parameter>\n/")
        return f"({_text(head)} text)"


class _Pythonic(_Format):
    def calls(self, call: str, many: bool) -> str:
        more = f' (", " {call})*' if many else ""
        return f'{self.begin} "[" {call}{more} "]" {self.end}'

    def call(self, name: str, schema: Schema) -> str:
        """Arguments in their order: what may follow none of them, and what may follow some, from the last one on."""
        none, some, i = '""', '""', len(self.lines)
        for name_of_one in reversed(list(schema.get("properties", {}))):
            value, i = self._value(schema, name_of_one), i + 1
            first = f"{_text(f'{name_of_one}=')} {value} {some}"
            later = f"{_text(f', {name_of_one}=')} {value} {some}"
            is_required = name_of_one in _required(schema)
            none = self.rule(f"first_{i}", first if is_required else f"({first}) | {none}")
            some = self.rule(f"later_{i}", later if is_required else f"({later}) | {some}")
        return f"{_text(f'{name}(')} {none} {_text(')')}"

    def _value(self, schema: Schema, name: str) -> str:
        words = {"boolean": '"True" | "False"', "null": '"None"'}
        types = argument_types(schema, name)
        found = [words[kind] for kind in words if kind in types]
        if not types or types - words.keys():
            found.append(self.argument(schema, name))
        return f"({' | '.join(found)})"


def _required(schema: Schema) -> Any:
    return schema.get("required") or ()


def _text(text: str) -> str:
    """A text in Lark."""
    return json.dumps(text, ensure_ascii=False)
