"""The user's own editor, for a message."""

import os
from pathlib import Path

import pytest

from afmoe_mlx.chat.keyboard.editor import edit_text
from afmoe_mlx.errors import InputError


def editor(tmp_path: Path, body: str) -> str:
    """An editor that does `body` with the file's name in `$1`."""
    program = tmp_path / "my editor"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    return f"'{program}'"


def test_the_editor_gets_the_text_in_a_private_file_and_gives_it_back(tmp_path: Path) -> None:
    wish = editor(tmp_path, 'stat -c %a "$(dirname "$2")" > mode; test "$1" = --wait && echo "and more" >> "$2"')
    before = os.getcwd()
    os.chdir(tmp_path)
    try:
        assert edit_text("héllo\nworld", {"VISUAL": wish + " --wait", "EDITOR": "false"}) == "héllo\nworld\nand more"
    finally:
        os.chdir(before)
    assert (tmp_path / "mode").read_text().strip() == "700"


def test_no_shell_reads_the_editors_name(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    with pytest.raises(InputError, match="cannot run the editor"):
        edit_text("x", {"EDITOR": f"nowhere; touch {victim} #"})
    assert not victim.exists()


@pytest.mark.parametrize("wish", ["'", "''"])
def test_an_editor_that_is_none_is_named(wish: str) -> None:
    with pytest.raises(InputError, match="set VISUAL"):
        edit_text("x", {"EDITOR": wish})


def test_an_editor_that_fails_changes_nothing(tmp_path: Path) -> None:
    assert edit_text("x", {"EDITOR": editor(tmp_path, 'echo y > "$1"; exit 1')}) is None
    with pytest.raises(InputError, match="cannot be read"):
        edit_text("x", {"EDITOR": editor(tmp_path, "printf '\\377' > \"$1\"")})


def test_a_byte_order_mark_that_an_editor_adds_is_no_part_of_the_message(tmp_path: Path) -> None:
    wish = editor(tmp_path, "printf '\\357\\273\\277hello\\n' > \"$1\"")
    assert edit_text("", {"EDITOR": wish}) == "hello"
