"""Editing a message in $VISUAL or $EDITOR."""

import os
import shlex
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from afmoe_mlx.errors import InputError


def edit_text(text: str, environ: Mapping[str, str] = os.environ) -> str | None:
    """`text` as it was saved in $VISUAL or $EDITOR; None if the editor ended with an error.

    The editor is a program and its arguments, as in `code --wait`; no shell reads it. InputError if it cannot be run.
    """
    wish = environ.get("VISUAL") or environ.get("EDITOR") or "vi"
    try:
        command = shlex.split(wish)
    except ValueError:
        command = []
    if not command:
        raise InputError(f"the editor is {wish!r}: set VISUAL to a program, as in VISUAL=nano")
    with tempfile.TemporaryDirectory(prefix="afmoe-mlx-") as folder:  # its owner's alone
        path = Path(folder) / "message.md"
        path.write_text(text + "\n", encoding="utf-8")
        try:
            done = subprocess.run([*command, str(path)])
        except OSError as error:
            raise InputError(
                f"cannot run the editor {wish!r} ({error.strerror}): set VISUAL to a program that is there"
            ) from None
        if done.returncode:
            return None
        try:
            return path.read_text(encoding="utf-8-sig").rstrip("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"what the editor saved cannot be read: {error}") from None
