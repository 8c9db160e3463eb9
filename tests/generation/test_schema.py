"""Schemas and grammars that cannot be enforced or satisfied are refused by name; what is not enforced is checked."""

import json
from typing import Any

import pytest

from afmoe_mlx.errors import InputError
from afmoe_mlx.generation import ConstraintOptions, check_options
from afmoe_mlx.generation.schema_check import violation

ARRAY = {"type": "array"}


def doubling(count: int) -> dict[str, Any]:
    """A schema of so many definitions, each of which refers to the next twice."""
    parts = {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(count)}
    return {"$ref": "#/$defs/d0", "$defs": {**parts, f"d{count}": {"type": "string"}}}


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        (ARRAY | {"uniqueItems": True}, "uniqueItems at $ cannot be enforced"),
        ({"properties": {"a b": ARRAY | {"contains": {}}}}, "contains at $.properties['a b'] cannot be enforced"),
        ({"anyOf": [{"type": "null"}, {"not": {}}]}, "not at $.anyOf[1] cannot be enforced"),
        ({"if": {}, "then": {}}, "if at $ cannot be enforced"),
        ({"prefixItems": [{}, {"format": "colour"}]}, "format 'colour' at $.prefixItems[1] cannot be enforced"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"propertyNames": {}}}}, "propertyNames at $.$defs.a cannot be enforced"),
        ({"type": "integer", "minimum": 3, "maximum": 1}, "nothing can satisfy it: minimum (3)"),
        ({"type": "object", "required": ["a"], "additionalProperties": False}, "nothing can satisfy it: required"),
        ({"enum": []}, "nothing can satisfy it: "),
        ({"type": "strng"}, "Invalid type: strng"),
        ({"$ref": "#/nowhere"}, "Pointer '/nowhere' does not exist"),
        ({"$ref": "https://example.org/a"}, "a reference to 'https://example.org/a' cannot be followed"),
        ({"pattern": "a(?=b)", "type": "string"}, "lookarounds, such as"),
        ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "holds itself without end"),
        ({"type": "array", "items": {"anyOf": [{"$ref": "#"}]}, "minItems": 1}, "holds itself without end"),
        ({"allOf": [{"$ref": "#/$defs/a~1b"}], "$defs": {"a/b": {"$ref": "#/$defs/a~1b"}}}, "holds itself without end"),
        (doubling(3000), "may have more than 1,000 levels within each other"),  # it would end the process
        ({"$id": "http://a", "$defs": {"a": doubling(90) | {"$id": "http://b"}}}, "may have more than 1,000 levels"),
        ("{", "json_schema is no JSON"),
        ("[]", "json_schema is []: expected an object"),
        ({"const": "\ud800"}, "json_schema has a lone surrogate"),
        ({"const": float("nan")}, "json_schema holds what is not JSON"),
        ({"enum": [{1, 2}]}, "json_schema holds what is not JSON"),
        (True, "json_schema is True: expected an object"),
    ],
    ids=lambda value: str(value)[:80],
)
def test_a_schema_that_cannot_be_is_refused_in_a_line_by_name(schema: Any, words: str) -> None:
    with pytest.raises(InputError) as caught:
        check_options(json_schema=schema)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"not": {"type": "null"}, "if": {"type": "string"}, "format": {"const": "x"}}},
        {"enum": [{"not": 1}, "uniqueItems"]},
        {"const": {"contains": {"if": 1}}},
        {"type": "string", "default": {"not": 1}, "examples": [{"format": "colour"}]},
        {"type": "object", "properties": {"next": {"$ref": "#"}}},
        {"anyOf": [{"type": "null"}, {"type": "array", "items": {"$ref": "#"}, "minItems": 1}]},
        {"type": "null", "$defs": {"unused": {"not": {}}}},
        {"$ref": "#a", "$defs": {"a": {"$anchor": "a", "type": "null"}}},
        doubling(300),
        '{"type": "integer"}',
    ],
    ids=lambda value: str(value)[:80],
)
def test_words_that_are_no_keywords_and_schemas_that_end_are_taken(schema: Any) -> None:
    assert not ConstraintOptions(json_schema=schema).is_checked_afterwards


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"regex": "a("}, "regex: unclosed group"),
        ({"regex": 3}, "regex is 3: expected text"),
        ({"regex": "\udcff"}, "regex has a lone surrogate"),
        ({"regex": "a\\"}, "regex: it ends in a backslash"),
        ({"regex": r"\ba"}, "regex: lookarounds, such as"),
        ({"regex": r"[^\s\S]"}, "regex: nothing can satisfy it"),
        ({"grammar": "start: start"}, "grammar: nothing can satisfy it"),
        ({"stop": 3}, "stop is 3, expected a list of strings"),
        ({"extra_eos_token": 3}, "extra_eos_token is 3, expected a list of strings"),
        ({"tool_choice": {"function": {"name": ["f"]}}}, "tool_choice is {'function': {'name': ['f']}}: expected auto"),
        ({"grammar": "begin: 'a'"}, "grammar: "),
        ({"grammar": 'start: "a" b'}, "grammar: "),
        ({"regex": "a", "grammar": 'start: "a"'}, "regex and grammar both constrain the answer: choose one"),
    ],
)
def test_other_rules_that_cannot_be_are_refused_in_a_line(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        check_options(**options)
    assert str(caught.value).startswith(words)
    assert "\n" not in str(caught.value)


def test_one_of_runs_as_any_of_and_is_checked_afterwards() -> None:
    overlapping = {
        "type": "object",
        "properties": {"a": {"oneOf": [{"type": "number"}, {"multipleOf": 2, "type": "integer"}]}},
    }
    rules = ConstraintOptions(json_schema=overlapping)
    assert rules.is_checked_afterwards
    assert rules.violation('{"a": 3}', is_complete=True) is None
    assert rules.violation('<think>{"a": 4}</think>\n{"a": 3}', is_complete=True) is None
    assert (rules.violation('{"a": 4}', is_complete=True) or "").startswith("$.a: 4 is valid under each of ")
    assert rules.violation('{"a": 4', is_complete=False) == "it ends before it is complete"
    disjoint = ConstraintOptions(json_schema={"oneOf": [{"type": "null"}, {"type": "boolean"}]})
    assert not disjoint.is_checked_afterwards


@pytest.mark.parametrize(
    ("schema", "text"), [({"$ref": "http://127.0.0.1:1/a"}, "1"), ({"pattern": "(?=a)"}, '"a"'), ({}, "{")], ids=str
)
def test_what_cannot_be_checked_says_so_and_fetches_nothing(schema: dict[str, Any], text: str) -> None:
    assert (violation(schema, text) or "").startswith("it cannot be checked (")


@pytest.mark.parametrize(
    ("schema", "value", "words"),
    [
        ({"pattern": "^(a+)+b$"}, "a" * 60, "does not match"),
        ({"patternProperties": {"^(a+)+$": {"type": "null"}}}, {"a" * 60: 1}, "is not of type 'null'"),
        ({"patternProperties": {"^(a+)+b$": {}}, "additionalProperties": False}, {"a" * 60: 1}, "no property that may"),
        ({"patternProperties": {"b": {}}, "additionalProperties": {"type": "null"}}, {"abc": 1, "a": 2}, "2 is not of"),
        (doubling(40), "a", "it cannot be checked (more than 20,000 references)"),
    ],
    ids=lambda value: str(value)[:80],
)
def test_no_schema_makes_a_check_endless(schema: dict[str, Any], value: Any, words: str) -> None:
    assert words in (violation(schema, json.dumps(value)) or "")


@pytest.mark.parametrize("text", ["é", "\x01\n\\", "\x7f\u2028\U0001f600", ""])
def test_a_pattern_is_looked_for_in_any_text(text: str) -> None:
    assert violation({"pattern": "^[^a]*$"}, json.dumps(text)) is None
    assert violation({"pattern": "^[^a]*$"}, json.dumps(f"{text}a")) is not None
