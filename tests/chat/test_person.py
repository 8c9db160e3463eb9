"""Calls of tools in the real program, in a real pseudo-terminal, with a server in a process of its own."""

import json
import re
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from helpers.mcp_server import misbehaving
from helpers.pseudo_terminal import CTRL_C, CTRL_D, ENTER, PseudoTerminal
from helpers.scripted import scripted_folder
from helpers.toolboxes import called

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal"),
    pytest.mark.skipif(find_spec("mcp") is None, reason="needs the extra mcp"),
]

QUESTION = r"Run it\? \[o\]nce, for this \[s\]ession, \[n\]ever; Enter: not now$"


def test_calls_are_shown_asked_for_and_stopped(tmp_path: Path) -> None:
    answers = [called("escape", '{"text": "\\u001b[2J"}'), called("silent"), "Well.", "Bye."]
    folder = scripted_folder(tmp_path / "model", answers)
    server = misbehaving("odd", "garbage")
    entry = {"command": server.command, "args": server.args}
    (tmp_path / "mcp.json").write_text(json.dumps({"mcpServers": {"odd": entry}}))
    with PseudoTerminal(tmp_path, "--model", str(folder), "--mcp", "mcp.json", rows=40) as terminal:
        terminal.wait_for_prompt()
        terminal.type("go" + ENTER + "s" + ENTER)  # typed before it is seen: no permission
        terminal.wait_for(r'→ escape · odd\n  text: "\\u001b\[2J"\n' + QUESTION)
        terminal.type("o" + ENTER)
        terminal.wait_for(r"\n  \\x1b\[2J\\x1b\]8;;http://evil\\x07click")
        terminal.wait_for(r"→ silent · odd\n" + QUESTION)
        terminal.type("s" + ENTER)
        terminal.wait_for("silent runs, Ctrl-C stops it, 0 s")
        terminal.type(CTRL_C)
        terminal.wait_for("error: the user stopped this call")
        terminal.wait_for_prompt()
        assert not re.search("runs, Ctrl-C stops it|parse|Traceback|hello", terminal.text)
        terminal.ask("and now?")
        terminal.type(CTRL_D)
        assert terminal.end() == 0
