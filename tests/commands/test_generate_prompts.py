"""`afmoe-mlx generate --prompts`: an object a prompt on stdout, each when it is finished, the rest on stderr."""

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from afmoe_mlx import generate, load
from afmoe_mlx.command_line import batch
from helpers.chat_templates import TEMPLATES, TOOLS
from helpers.command_line import Result, run
from helpers.conversations import OPENING
from helpers.tiny import tiny_folder

OPTIONS = ("--json", "-m", "6")


def answered(model: str, lines: list[Any], *options: str) -> Result:
    stdin = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    return run("generate", "--model", model, "--prompts", "-", *OPTIONS, *options, stdin=stdin)


def objects(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.out.splitlines()]


def test_each_line_gets_the_answer_that_it_gets_alone_as_soon_as_it_is_finished(model: str, tmp_path: Path) -> None:
    lines = [
        {"prompt": "hello", "id": {"any": 1}},
        {"prompt": "hello", "max_tokens": 2, "temperature": 1.0, "seed": 4},
        {"messages": [{"role": "user", "content": "hello"}], "id": None},
    ]
    path = tmp_path / "prompts.jsonl"
    path.write_text("\ufeff" + "\n\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    result = run("generate", "--model", model, "--prompts", str(path), "--max-rows", "2", *OPTIONS)
    assert result.code == 0
    found = {value["index"]: value for value in objects(result)}
    assert [value["index"] for value in objects(result)] == [1, 0, 2]
    assert (found[0]["id"], "id" in found[1], found[2]["id"]) == ({"any": 1}, False, None)
    alone = [run("generate", "--model", model, "-p", "hello", *OPTIONS)]
    alone += [run("generate", "--model", model, "-p", "hello", *OPTIONS, "-m", "2", "--temp", "1", "--seed", "4")]
    for index, other in enumerate([*alone, alone[0]]):
        (value,) = objects(other)
        same = ("text", "reasoning", "finish_reason", "prompt_tokens", "generation_tokens")
        assert [found[index][name] for name in same] == [value[name] for name in same]
        assert found[index].keys() - {"index", "id"} == value.keys()
    assert "3 answers: " in result.err
    (value,) = objects(answered(model, [{"prompt": "x"}], "--prompt-lookup"))
    assert value["text"] == objects(answered(model, [{"prompt": "x"}]))[0]["text"]
    assert value["drafted_tokens"] >= value["accepted_tokens"] == value["saved_steps"]
    assert answered(model, [{"prompt": "x"}], "--verbose", "False").err == ""


def test_options_of_the_command_are_those_of_lines_that_say_nothing(tmp_path: Path) -> None:
    folder = str(tiny_folder(tmp_path / "thinker", template=OPENING))
    lines = [{"prompt": "hello"}, {"messages": [{"role": "user", "content": "hello"}], "reasoning_budget": 2}]
    result = answered(folder, lines, "--reasoning-budget", "0", "--system-prompt", "be brief", "-m", "20")
    first, second = sorted(objects(result), key=lambda value: value["index"])
    assert (first["reasoning"], first["prompt_tokens"]) == (None, second["prompt_tokens"])
    assert second["reasoning"]
    plain = answered(folder, [{"prompt": "hello"}], "--ignore-chat-template")
    assert objects(plain)[0]["text"] == generate(*load(folder), "hello", max_tokens=6)


def test_a_line_may_offer_tools_of_its_own_and_begin_its_answer(tmp_path: Path) -> None:
    folder = str(tiny_folder(tmp_path / "m", template=TEMPLATES["chatml"]))
    begun = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "<think>\nhello"}]
    lines = [{"prompt": "hello", "tools": TOOLS, "tool_choice": "required", "max_tokens": 40}, {"messages": begun}]
    first, second = sorted(objects(answered(folder, lines)), key=lambda value: value["index"])
    offered = {tool["function"]["name"] for tool in TOOLS}
    assert {call["name"] for call in first["tool_calls"]} & offered
    assert (bool(second["reasoning"]), second["text"]) == (True, "")
    assert "tools need a chat template" in answered(folder, lines, "--ignore-chat-template").err


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2: not valid JSON"),
        ([1], "line 2: a JSON list: expected"),
        ({}, "line 2: neither prompt nor messages: expected"),
        ({"prompt": "x", "messages": []}, "line 2: both prompt and messages"),
        ({"prompt": 5}, "line 2: prompt is no text"),
        ({"messages": [{"content": "x"}]}, "line 2: messages is no list of messages with a role"),
        ({"prompt": "x", "temprature": 1}, "line 2: .*no option .temprature."),
        ({"prompt": "x", "top_p": 3}, "line 2: top_p is 3"),
        ({"prompt": "x", "cache": 3}, "line 2: .*no option 'cache'"),
        ({"prompt": "x", "tools": {}}, "line 2: tools are of type dict"),
        ({"messages": [{"role": "assistant", "content": None}]}, "line 2: the last message is an answer without text"),
        ({"prompt": "x", "prompt_lookup": 0}, "line 2: prompt_lookup is 0"),
        ({"prompt": "x", "draft_model": "demo"}, "line 2: .*no option 'draft_model'"),
        ({"prompt": "hello " * 600}, "line 2: .*context"),
        ({"prompt": "x", "extra_eos_token": ["nothing"]}, "line 2: "),
    ],
)
def test_a_line_that_cannot_be_is_named_before_anything_runs(model: str, line: Any, words: str) -> None:
    result = answered(model, [{"prompt": "x"}, line])
    assert (result.code, result.out) == (1, "")
    assert len(result.err.splitlines()) == 1
    assert re.search(words, result.err), result.err


def test_files_that_hold_no_prompts_are_refused(model: str, tmp_path: Path) -> None:
    assert "stdin has no prompts" in answered(model, [""]).err
    result = run("generate", "--model", model, "--prompts", str(tmp_path / "none"), *OPTIONS)
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert "cannot be read" in result.err


@pytest.mark.parametrize(
    "options",
    [
        ("-p", "x", "--prompts", "-", "--json"),
        (),
        ("--prompts", "-"),
        ("-p", "x", "--max-rows", "2"),
        ("--prompts", "-", "--json", "--prompt-cache-file", "x"),
    ],
)
def test_options_that_contradict_each_other_are_wrong_usage(options: tuple[str, ...]) -> None:
    assert run("generate", *options).code == 2


def test_an_interruption_keeps_what_was_printed(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    print_json = batch.write_json

    def interrupted(value: Any) -> None:
        print_json(value)
        raise KeyboardInterrupt

    monkeypatch.setattr(batch, "write_json", interrupted)
    result = answered(model, [{"prompt": "hello"}, {"prompt": "hello", "max_tokens": 2}])
    assert (result.code, [value["index"] for value in objects(result)]) == (130, [1])
    assert "Interrupted: 0 of 2 answers" in result.err


def test_a_bar_shows_how_many_are_finished_and_stdout_stays_clean(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    real = batch.progress_bar

    def bar(label: str) -> Any:
        monkeypatch.setattr("sys.stderr", terminal)
        return real(label)

    monkeypatch.setattr(batch, "progress_bar", bar)
    result = answered(model, [{"prompt": "hello"}, {"prompt": "hello", "max_tokens": 2}])
    assert [value["index"] for value in objects(result)] == [1, 0]
    assert "answering" in terminal.getvalue()
    assert "index" not in terminal.getvalue()
