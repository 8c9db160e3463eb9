"""The mcpServers file."""

import json
from pathlib import Path
from typing import Any

import pytest

from afmoe_mlx.chat.tools.server_file import ServerConfig, read_servers
from afmoe_mlx.errors import InputError


def servers(folder: Path, **entries: Any) -> list[ServerConfig]:
    return read_servers(written(folder, json.dumps({"mcpServers": entries})))


def written(folder: Path, text: str) -> str:
    path = folder / "servers.json"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_file_of_another_program_gives_its_servers_without_those_that_are_disabled(tmp_path: Path) -> None:
    entry = {"command": "uvx", "args": ["a"], "env": {"K": "v"}, "cwd": "/tmp", "type": "stdio", "alwaysAllow": ["x"]}
    found = servers(tmp_path, one=entry, two={"command": "npx", "disabled": False}, off={"disabled": True})
    assert found == [ServerConfig("one", "uvx", ("a",), {"K": "v"}, "/tmp"), ServerConfig("two", "npx")]
    text = '\ufeff{"mcpServers": {"a": {"command": "b"}}, "globalShortcut": ""}'
    assert read_servers(written(tmp_path, text)) == [ServerConfig("a", "b")]


def test_a_server_at_an_address_is_refused_alone(tmp_path: Path) -> None:
    far, near = servers(tmp_path, far={"type": "http", "url": "https://example.com/mcp"}, near={"command": "x"})
    assert (far.name, near.refusal) == ("far", "")
    assert "only those over stdio" in far.refusal


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[]", "names no MCP servers"),
        ('{"servers": {}}', "names no MCP servers"),
        ('{"mcpServers": {}}', "no MCP server that is not disabled"),
        ('{"mcpServers": {"a": 1}}', "mcpServers.a: expected an object"),
        ('{"mcpServers": {"a\\nb": {"command": "x"}}}', "mcpServers.a b: expected a name"),
        ('{"mcpServers": {"a\\u001b": {}}}', r"mcpServers.a\x1b.command: expected a program"),
        ('{"mcpServers": {"a": {"command": ["x"]}}}', "mcpServers.a.command: expected a program"),
        ('{"mcpServers": {"a": {"command": "x", "args": "y"}}}', "mcpServers.a.args: expected a list of texts"),
        ('{"mcpServers": {"a": {"command": "x", "args": [1]}}}', "mcpServers.a.args: expected a list of texts"),
        ('{"mcpServers": {"a": {"command": "x", "env": {"A": 1}}}}', "mcpServers.a.env: expected an object of texts"),
        ('{"mcpServers": {"a": {"command": "x", "cwd": 1}}}', "mcpServers.a.cwd: expected a folder"),
    ],
)
def test_what_is_wrong_is_told_in_a_line_that_says_where(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InputError) as error:
        read_servers(written(tmp_path, text))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be read \(No such file"):
        read_servers(str(tmp_path / "none.json"))
