"""`--json-schema`, `--regex`, `--grammar`: from the command line or a file to an answer, or to one line."""

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.command_line import run

SCHEMA = '{"type": "object", "properties": {"a": {"enum": [1, "é"]}}, "required": ["a"], "additionalProperties": false}'


@pytest.mark.parametrize("command", [["generate", "-p"], ["chat"]], ids=" ".join)
def test_an_answer_is_what_it_is_held_to(command: list[str], model: str, tmp_path: Path) -> None:
    file, lark = tmp_path / "schema.json", tmp_path / "yes.lark"
    file.write_text("\ufeff" + SCHEMA, encoding="utf-8")
    lark.write_text('start: "yes" | "no"', encoding="utf-8")
    start = [*command[:1], "--model", model]
    given = SCHEMA if command == ["chat"] else str(file)
    assert json.loads(run(*start, "--json-schema", given, *command[1:], "hello").out)["a"] in (1, "é")
    assert run(*start, "--regex", "[0-9]{3}", *command[1:], "hello").out.strip().isdecimal()
    assert run(*start, "--grammar", str(lark), *command[1:], "hello").out in ("yes\n", "no\n")


@pytest.mark.parametrize("command", [["generate", "-p"], ["chat"]], ids=" ".join)
def test_an_answer_that_falls_short_says_so(command: list[str], model: str) -> None:
    options = [*command[:1], "--model", model, "--json-schema", '{"type": "string", "minLength": 40}', "-m", "5"]
    result = run(*options, *command[1:], "hello")
    assert "The answer is not what was asked for: it ends before it is complete.\n" in result.err
    found = json.loads(run(*options, "--json", *command[1:], "hello").out)
    assert (found["finish_reason"], found["violation"]) == ("length", "it ends before it is complete")
    assert "violation" not in json.loads(
        run(*command[:1], "--model", model, "-m", "5", "--json", *command[1:], "x").out
    )


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--json-schema", "{"], 1, "--json-schema: not valid JSON ("),
        (["--json-schema", "nowhere.json"], 1, "--json-schema nowhere.json: cannot be read ("),
        (["--json-schema", '{"not": {}}'], 1, "json_schema: not at $ cannot be enforced: leave it out"),
        (["--grammar", "nowhere.lark"], 1, "--grammar nowhere.lark: cannot be read ("),
        (["--regex", "a", "--grammar", "b"], 2, "choose one of --json-schema, --regex and --grammar"),
        (["--tool-choice", "f"], 2, "--tool-choice needs --tools"),
    ],
)
def test_what_cannot_be_is_one_line_before_a_model_is_loaded(options: list[str], code: int, words: str) -> None:
    result = run("generate", "--model", "no/model", "-p", "x", *options)
    assert result.code == code
    assert words in " ".join(result.err.split())


def test_a_file_that_holds_no_object_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text("[]")
    result = run("generate", "-p", "x", "--json-schema", str(tmp_path / "list.json"))
    assert "list.json: a list: expected a schema, an object" in result.err


def test_a_tool_is_called_that_was_chosen(tmp_path: Path) -> None:
    from helpers.tiny import tiny_folder

    folder, tools = str(tiny_folder(tmp_path / "m", template="{{ tools }}<tool_call>")), tmp_path / "tools.json"
    parameters: dict[str, Any] = {"type": "object", "properties": {"n": {"enum": [7]}}, "required": ["n"]}
    tools.write_text(json.dumps([{"name": "first"}, {"name": "second", "parameters": parameters}]))
    options = ["generate", "--model", folder, "-p", "hello", "--json", "--tools", str(tools)]
    found = json.loads(run(*options, "--tool-choice", "second").out)
    assert [(call["name"], call["arguments"]) for call in found["tool_calls"]] == [("second", '{"n": 7}')]
    assert found["violation"] is None
    assert "tool_choice is 'third': expected" in run(*options, "--tool-choice", "third").err


def test_a_choice_of_none_offers_no_tools(tmp_path: Path) -> None:
    from helpers.tiny import tiny_folder

    folder, tools = str(tiny_folder(tmp_path / "m", template="{{ tools }}<tool_call>")), tmp_path / "tools.json"
    tools.write_text(json.dumps([{"name": "first"}]))
    lines = ({"prompt": "x", "tools": [{"name": "first"}], "tool_choice": choice} for choice in ("auto", "none"))
    (tmp_path / "lines.jsonl").write_text("\n".join(map(json.dumps, lines)))
    options = ["generate", "--model", folder, "--json", "-m", "1"]
    choices = [run(*options, "-p", "x", "--tools", str(tools), "--tool-choice", each).out for each in ("auto", "none")]
    several = run(*options, "--prompts", str(tmp_path / "lines.jsonl")).out.splitlines()
    for found in (choices, sorted(several, key=lambda line: json.loads(line)["index"])):
        offered, none = (json.loads(line)["prompt_tokens"] for line in found)
        assert none < offered
