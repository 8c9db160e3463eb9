"""A small MCP server that misbehaves when told to: the protocol by hand, so that it starts at once.

`python mcp_server.py hang|die|garbage|mute|lie` misbehaves at its start, and with `stay` at its end. Its tools say what
they do.
"""

import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from afmoe_mlx.chat.tools.server_file import ServerConfig

TOOLS = {
    "echo": "the arguments",
    "fail": "an error of the tool",
    "refuse": "an error of the protocol",
    "silent": "nothing, ever",
    "cancelled": "how many calls were cancelled",
    "die": "nothing: it ends",
    "flood": "a megabyte",
    "escape": "sequences that drive a terminal",
    "picture": "an image, a link, a resource, audio",
    "structured": "structured content alone",
    "environment": "its variables, its folder",
    "spawn": "the id of a child that it leaves behind",
    "noise": "ok, after a line that is no message",
    "get-odd name": "ok, under a name that is none in Python",
}
heard: list[str] = []
PICTURES = [
    {"type": "image", "mimeType": "image/png", "data": "AAAA"},
    {"type": "audio", "mimeType": "audio/wav", "data": "AAAA"},
    {"type": "resource_link", "name": "notes", "uri": "file:///notes.txt"},
    {"type": "resource", "resource": {"uri": "file:///a.txt", "text": "text of a resource"}},
    {"type": "resource", "resource": {"uri": "file:///b.bin", "blob": "AAAA", "mimeType": "application/x-b"}},
]


def misbehaving(name: str, way: str = "", **more: Any) -> "ServerConfig":
    """One of these servers, as the chat's file names it."""
    from afmoe_mlx.chat.tools.server_file import ServerConfig

    return ServerConfig(name, sys.executable, ("-S", "-E", __file__, *way.split()), **more)


def send(message: dict[str, Any]) -> None:
    print(json.dumps({"jsonrpc": "2.0", **message}), flush=True)


def text(words: str, **more: Any) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": words}], **more}


def result(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    match name:
        case "echo":
            return text(json.dumps(arguments))
        case "fail":
            return text("it went wrong", isError=True)
        case "cancelled":
            return text(str(heard.count("notifications/cancelled")))
        case "die":
            print("last words\x1b[31m", file=sys.stderr, flush=True)
            os._exit(3)
        case "flood":
            return text("line of a flood\n" * (1 << 16))
        case "escape":
            return text("\x1b[2J\x1b]8;;http://evil\x07click\x1b]0;owned\x07\u202egnp\x9b31m")
        case "picture":
            return {"content": PICTURES}
        case "structured":
            return {"content": [], "structuredContent": {"sun": True}}
        case "environment":
            return text(json.dumps({"env": dict(os.environ), "cwd": os.getcwd()}))
        case "spawn":
            return text(str(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]).pid))
        case "noise":
            print("\x1b[31mno message", flush=True)
    return text("ok")


def answer(message: dict[str, Any]) -> None:
    method, params = message["method"], message.get("params", {})
    heard.append(method)
    if method == "initialize":
        version, info = params["protocolVersion"], {"name": "test", "version": "1"}
        send(
            {
                "id": message["id"],
                "result": {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": info},
            }
        )
    elif method == "tools/list" and sys.argv[1:] == ["mute"]:
        pass
    elif method == "tools/list" and sys.argv[1:] == ["lie"]:
        send({"id": message["id"], "result": {"tools": [{"name": "no schema\x1b[31m"}]}})
    elif method == "tools/list":  # a page at a time
        at = int(params.get("cursor") or 0)
        page = list(TOOLS.items())[at : at + 8]
        tools = [{"name": name, "description": does, "inputSchema": {"type": "object"}} for name, does in page]
        more = {"nextCursor": str(at + 8)} if at + 8 < len(TOOLS) else {}
        send({"id": message["id"], "result": {"tools": tools, **more}})
    elif method == "tools/call" and params["name"] == "silent":
        pass
    elif method == "tools/call" and params["name"] != "refuse":
        send({"id": message["id"], "result": result(params["name"], params.get("arguments") or {})})
    elif "id" in message:
        send({"id": message["id"], "error": {"code": -32601, "message": f"no {method}\x1b[31m"}})


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["hang"]:
            time.sleep(60)
        case ["die"]:
            sys.exit("no key: set KEY")
        case ["garbage"]:
            print("\x1b[31mhello", flush=True)
    for line in sys.stdin:
        answer(json.loads(line))
    if sys.argv[1:] == ["stay"]:
        time.sleep(60)
