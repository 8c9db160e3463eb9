"""The file that names MCP servers: `mcpServers`, as other programs have it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from afmoe_mlx.command_line.text_files import read_text
from afmoe_mlx.errors import InputError
from afmoe_mlx.terminal import printable

EXPECTED = '{"mcpServers": {"NAME": {"command": …}}}'


@dataclass(frozen=True)
class ServerConfig:
    """An MCP server: a program that is talked to over its stdin and stdout.

    refusal: why it is not started, "" if it is.
    """

    name: str
    command: str = ""
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    """Added to the few variables that every server is given: PATH, HOME and their like."""
    cwd: str | None = None
    refusal: str = ""


def read_servers(path: str) -> list[ServerConfig]:
    """The servers of a file, without those that are disabled; keys of other programs are passed over.

    A server that is not a program, but an address, is refused by itself. InputError for a file that is not there or has
    another form, and for one that names no server.
    """
    shown = printable(path)
    content = read_text(path, "--mcp")
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{shown} is no JSON ({error}): expected {EXPECTED}") from None
    servers = found.get("mcpServers") if isinstance(found, dict) else None
    if not isinstance(servers, dict):
        raise InputError(f"{shown} names no MCP servers: expected {EXPECTED}")
    configs = [
        _server(name, entry, f"{shown}: mcpServers.{printable(' '.join(name.split()))}")
        for name, entry in servers.items()
        if not (isinstance(entry, dict) and entry.get("disabled") is True)
    ]
    if not configs:
        raise InputError(f"{shown} names no MCP server that is not disabled: expected {EXPECTED}")
    return configs


def _server(name: str, entry: Any, where: str) -> ServerConfig:
    if not name or len(name.splitlines()) > 1:
        raise InputError(f"{where}: expected a name for the server, in one line")
    if not isinstance(entry, dict):
        raise InputError(f'{where}: expected an object, as in {{"command": "uvx", "args": ["mcp-server-time"]}}')
    if "command" not in entry and "url" in entry:
        return ServerConfig(name, refusal="it is a server at an address: only those over stdio are supported here")
    command, args, env, cwd = (entry.get(key) for key in ("command", "args", "env", "cwd"))
    if not isinstance(command, str) or not command:
        raise InputError(f"{where}.command: expected a program to run")
    if not (args is None or (isinstance(args, list) and all(isinstance(arg, str) for arg in args))):
        raise InputError(f"{where}.args: expected a list of texts")
    if not (env is None or (isinstance(env, dict) and all(isinstance(value, str) for value in env.values()))):
        raise InputError(f"{where}.env: expected an object of texts")
    if not (cwd is None or isinstance(cwd, str)):
        raise InputError(f"{where}.cwd: expected a folder")
    return ServerConfig(name, command, tuple(args or ()), env or {}, cwd)
