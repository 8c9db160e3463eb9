"""`afmoe-mlx chat` that answers once: a question as an argument, on stdin, or both."""

import importlib.metadata
import importlib.util
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from afmoe_mlx import generate, load
from afmoe_mlx.cli import app
from afmoe_mlx.messages.reasoning import split_thinking
from helpers.command_line import invoke
from helpers.conversations import OPENING
from helpers.mcp_server import misbehaving
from helpers.pseudo_terminal import PseudoTerminal
from helpers.scripted import scripted_folder
from helpers.tiny import tiny_folder
from helpers.toolboxes import called, schema


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def chat(*arguments: str, stdin: str = "") -> Any:
    return invoke(["chat", *arguments], input=stdin)


def expected(model: str, text: str, **options: Any) -> str:
    loaded = load(model)
    prompt = loaded[1].apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)
    return generate(*loaded, prompt, **options)


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        ((), "hello\n", "hello"),
        (("hello",), "", "hello"),
        (("what is it?",), "a text\n", "a text\n\nwhat is it?"),
        (("/exit",), "", "/exit"),
    ],
)
def test_a_question_is_answered_plainly_and_nothing_is_saved(
    model: str, home: Path, arguments: tuple[str, ...], stdin: str, message: str
) -> None:
    result = chat(*arguments, "--model", model, "-m", "8", "--temp", "0", stdin=stdin)
    assert result.stdout == expected(model, message, max_tokens=8) + "\n"
    assert (result.stderr, result.exit_code) == ("The answer is cut off after 8 tokens: --max-tokens allows more.\n", 0)
    assert not (home / "data").exists()
    assert not (home / "cache").exists()


def test_json_is_one_object_with_the_keys_of_generate(model: str) -> None:
    options = ("--model", model, "-m", "8", "--temp", "0", "--json")
    told = json.loads(chat("hello", *options).stdout)
    other = json.loads(invoke(["generate", "-p", "hello", *options]).stdout)
    assert told.keys() == other.keys()
    assert (told["text"], told["finish_reason"]) == (other["text"], "length")


def test_a_saved_conversation_goes_on_by_its_name_or_as_the_last_one(model: str, home: Path) -> None:
    from afmoe_mlx.chat import Conversation
    from afmoe_mlx.chat.sessions.folder import SessionFolder

    loaded = load(model)
    conversation = Conversation(*loaded, options={"max_tokens": 6, "temperature": 0.0}, system_prompt="the world")
    list(conversation.reply("hello"))
    with SessionFolder().create("first", model=model) as session:
        session.save(conversation)
    for arguments in (("the", "--resume"), ("--resume", "fir", "world")):
        result = chat(*arguments)  # with the session's own model and settings
        assert result.exit_code == 0, result.output
        list(conversation.reply("world" if "world" in arguments else "the"))
        assert result.stdout == conversation.messages[-1]["content"] + "\n"
    with SessionFolder().open("first") as session:
        assert session.messages == conversation.messages
    assert "no session frist: did you mean first?" in chat("x", "--resume", "frist").stderr


def test_no_line_editor_is_imported_for_one_answer(model: str) -> None:
    code = f"""import sys
from afmoe_mlx.cli import app
try: app(["chat", "hello", "--model", {model!r}, "-m", "2"])
except SystemExit: print(*sys.modules, file=sys.stderr)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    found = set(done.stderr.split())
    assert "afmoe_mlx.chat.conversation.conversation" in found
    assert found & {"prompt_toolkit", "markdown_it", "pygments", "huggingface_hub", "numpy", "transformers"} == set()
    assert found & {"asyncio", "mcp", "pydantic"} == set()


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "words"),
    [
        ((), "", 1, "stdin is empty: expected a message"),
        (("  ",), "", 1, "the question is empty"),
        (("x", "--resume"), "", 1, "no saved chats"),
        (("x", "--temp", "-1"), "", 1, "temperature is -1.0"),
        (("x", "--max-tokens", "0"), "", 1, "max_tokens is 0"),
        (("x", "y"), "", 2, "unexpected extra argument"),
    ],
)
def test_what_cannot_be_answered_is_one_line(
    model: str, arguments: tuple[str, ...], stdin: str, code: int, words: str
) -> None:
    result = chat(*arguments, "--model", model, stdin=stdin)
    assert result.exit_code == code
    assert words in result.stderr
    assert result.stdout == ""


def test_a_message_longer_than_the_context_is_refused(model: str) -> None:
    result = chat("hello " * 2000, "--model", model)
    assert result.exit_code == 1
    assert "error: the conversation would have" in result.stderr


def test_json_on_a_terminal_needs_a_question(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal())
    with pytest.raises(SystemExit) as caught:
        app(["chat", "--model", model, "--json"])
    assert caught.value.code == 2


def test_no_think_reaches_the_template_or_says_that_it_cannot(model: str, tmp_path: Path) -> None:
    assert "has no switch for its reasoning" in chat("hello", "--model", model, "-m", "1", "--no-think").stderr
    thinker = tiny_folder(tmp_path / "thinker")
    template = "{{ messages[-1].content }}{% if enable_thinking is defined and not enable_thinking %} the{% endif %}"
    (thinker / "chat_template.jinja").write_text(template)
    options = ("hello", "--model", str(thinker), "-m", "1", "--json")
    plain, brief = (json.loads(chat(*options, *more).stdout)["prompt_tokens"] for more in ((), ("--no-think",)))
    assert brief > plain


def test_on_a_terminal_a_question_is_answered_as_markdown_and_the_program_ends(tmp_path: Path) -> None:
    with PseudoTerminal(tmp_path, "What is a router?", "--temp", "0") as terminal:
        assert terminal.end() == 0
    assert "\nThe router is a small layer" in terminal.text
    assert "tokens/s" not in terminal.text
    assert b"\x1b[?2026h" in terminal.received


def test_reasoning_is_on_stderr_or_a_field_and_the_answer_alone_on_stdout(tmp_path: Path) -> None:
    folder = str(tiny_folder(tmp_path / "thinker", template=OPENING))
    options = ("--model", folder, "-m", "30", "--temp", "0", "--reasoning-budget", "6")
    model, tokenizer = load(folder)
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], add_generation_prompt=True)
    written = generate(model, tokenizer, prompt, max_tokens=30, reasoning_budget=6)
    thought, answer = split_thinking("<think>\n" + written)
    assert thought.strip()
    assert answer
    told = json.loads(chat("hello", *options, "--json").stdout)
    assert (told["reasoning"], told["text"]) == (thought.strip(), answer)
    plain = chat("hello", *options)
    assert plain.stdout == answer + "\n"
    cut = "The answer is cut off after 30 tokens: --max-tokens allows more.\n"
    assert plain.stderr.strip("\n") == (thought.strip("\n") + "\n" + cut).strip("\n")


def test_an_answer_that_came_no_further_than_its_reasoning_says_so(tmp_path: Path) -> None:
    folder = str(tiny_folder(tmp_path / "thinker", template=OPENING))
    result = chat("hello", "--model", folder, "-m", "5", "--temp", "0")
    assert result.stdout == "\n"
    words = "cut off in its reasoning after 5 tokens: --max-tokens allows more, --reasoning-budget ends the reasoning"
    assert words in result.stderr
    told = json.loads(chat("hello", "--model", folder, "-m", "5", "--temp", "0", "--json").stdout)
    assert (told["text"], told["finish_reason"]) == ("", "length")
    assert told["reasoning"]


def test_an_answer_that_fills_the_context_says_so(tmp_path: Path) -> None:
    folder = str(tiny_folder(tmp_path / "m", max_position_embeddings=64))
    result = chat("hello", "--model", folder, "-m", "200", "--temp", "0")
    assert "The answer is cut off: the context of 64 tokens is full.\n" in result.stderr


def servers(folder: Path, **entries: Any) -> str:
    path = folder / "servers.json"
    path.write_text(json.dumps({"mcpServers": entries}))
    return str(path)


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("mcp", "mcp_server_time"))), reason="needs mcp-server-time (the dev extra)"
)
def test_a_real_servers_tools_are_called_as_far_as_they_are_permitted(tmp_path: Path) -> None:
    asked = called("get_current_time", '{"timezone": "Asia/Tokyo"}') + called("convert_time")
    folder = scripted_folder(tmp_path / "model", [f"I look.\n{asked}", "It is late."])
    clock = {"command": sys.executable, "args": ["-m", "mcp_server_time"]}
    file = servers(tmp_path, clock=clock, far={"url": "https://example.com"})
    result = chat("What time is it?", "--model", str(folder), "--mcp", file, "--allow-tool", "get_current_time")
    assert (result.exit_code, result.stdout) == (0, "I look.\n\nIt is late.\n")
    wanted = (
        "warning: MCP server far: it is a server at an address",
        '→ get_current_time({"timezone": "Asia/Tokyo"})\n  { "timezone": "Asia/Tokyo", "datetime": "20',
        "→ convert_time({})\nconvert_time is not run: --allow-tool convert_time permits it\n"
        "  error: the user does not allow this tool: do not call it again\n",
    )
    assert [words for words in wanted if words not in result.stderr] == []


def test_nothing_but_the_answer_is_on_stdout_where_calls_came_before_it(tmp_path: Path) -> None:
    pytest.importorskip("mcp", reason="needs the extra mcp")
    folder = scripted_folder(tmp_path / "model", [called("echo"), "Done."])
    server = misbehaving("one")
    file = servers(tmp_path, one={"command": server.command, "args": server.args})
    told = chat("hello", "--model", str(folder), "--mcp", file)
    assert (told.exit_code, told.stdout) == (0, "Done.\n")


def test_calls_of_a_files_tools_are_the_answer(tmp_path: Path) -> None:
    folder = scripted_folder(tmp_path / "model", ["Hm. " + called("weather", '{"city": "Ulm"}')])
    (tmp_path / "tools.json").write_text(json.dumps([schema("weather")]))
    told = chat("hello", "--model", str(folder), "--tools", str(tmp_path / "tools.json"))
    assert (told.exit_code, told.stdout) == (0, 'Hm. \nweather({"city": "Ulm"})\n')


def test_what_stands_in_the_way_of_tools_is_one_line(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("hello", "--model", model)
    assert "--allow-tool needs --mcp" in chat(*options, "--allow-tool", "x").stderr
    (tmp_path / "tools.json").write_text(json.dumps([schema("weather")]))
    told = chat(*options, "--tools", str(tmp_path / "tools.json"))
    assert (told.exit_code, "chat template knows no tools" in told.stderr) == (1, True)
    monkeypatch.setattr(importlib.metadata, "version", missing)
    told = chat(*options, "--mcp", servers(tmp_path, one={"command": "x"}))
    assert told.exit_code == 1
    assert told.stderr == 'error: MCP servers need the package mcp: pip install "afmoe-mlx[mcp]" installs it\n'


def missing(name: str) -> str:
    raise importlib.metadata.PackageNotFoundError
