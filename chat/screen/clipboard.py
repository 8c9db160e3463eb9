"""The clipboard: of this desktop where a program for it is there, else of the terminal, wherever that is."""

import base64
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import IO

from afmoe_mlx.errors import InputError

# xterm's limit, the smallest of those known: a longer text may be dropped by the terminal.
MOST_BYTES = 74_994


def copy(text: str, terminal: IO[str], environ: Mapping[str, str] = os.environ) -> str:
    """Copy a text; says where to, and what may have gone wrong. InputError where there is no clipboard.

    A terminal is asked by its escape sequence OSC 52, which works over SSH but which it may ignore: nothing is known
    of what came of it.
    """
    command = desktop_command(environ)
    if command is not None:
        # which encoding it is given pbcopy only knows from the locale
        utf8 = {**environ, "LC_CTYPE": "UTF-8"} if command == ["pbcopy"] else environ
        done = subprocess.run(
            command, input=text.encode(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=utf8
        )
        if done.returncode == 0:
            return "copied"
    sequence = osc52(text, in_tmux="TMUX" in environ)
    if environ.get("TERM") in ("dumb", "unknown"):
        raise InputError("this terminal has no clipboard: /export writes the conversation to a file")
    terminal.write(sequence)
    terminal.flush()
    if len(sequence) > MOST_BYTES:
        return "sent to the terminal's clipboard, which may not take so much"
    return "sent to the terminal's clipboard"


def osc52(text: str, *, in_tmux: bool = False) -> str:
    """The escape sequence that sets a terminal's clipboard.

    tmux takes it itself with `set-clipboard on`, and hands it on, wrapped, with `allow-passthrough on`: both are sent.
    """
    sequence = f"\x1b]52;c;{base64.b64encode(text.encode()).decode()}\x07"
    if not in_tmux:
        return sequence
    wrapped = sequence.replace("\x1b", "\x1b\x1b")
    return f"{sequence}\x1bPtmux;{wrapped}\x1b\\"


def desktop_command(environ: Mapping[str, str], platform: str = sys.platform) -> Sequence[str] | None:
    """The program that sets this desktop's clipboard from its stdin; None over SSH and where there is none."""
    if "SSH_CONNECTION" in environ:
        return None
    if platform == "darwin":
        candidates = [["pbcopy"]]
    else:
        wayland, x11 = "WAYLAND_DISPLAY" in environ, "DISPLAY" in environ
        candidates = [["wl-copy"]] * wayland + [["xclip", "-selection", "clipboard"], ["xsel", "-bi"]] * x11
    path = environ.get("PATH")
    return next((command for command in candidates if shutil.which(command[0], path=path)), None)
