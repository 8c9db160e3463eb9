"""What a chat offers its model, under which names, and what of it is permitted."""

import importlib.metadata

import pytest

from afmoe_mlx.chat.tools.mcp_client import check_installed
from afmoe_mlx.chat.tools.permissions import Choice, Permissions
from afmoe_mlx.chat.tools.results import ToolResult, fitted
from afmoe_mlx.errors import InputError
from helpers.toolboxes import schema, toolbox


def test_a_name_that_several_have_is_prefixed_and_no_two_are_alike() -> None:
    box = toolbox(one=["read", "read-file", "read.file"], two=["read", "read_file", "1 é", "two_read"])
    box.use([schema("read_file")])
    assert [(tool.name, tool.server, tool.original) for tool in box.tools] == [
        ("read_file", "", ""),
        ("one_read", "one", "read"),
        ("one_read_file", "one", "read-file"),
        ("read.file", "one", "read.file"),
        ("two_read", "two", "read"),
        ("two_read_file", "two", "read_file"),
        ("_1__", "two", "1 é"),
        ("two_two_read", "two", "two_read"),
    ]
    twins = toolbox(one=["a-b", "a b", "a_b"]).tools
    assert [tool.name for tool in twins] == ["one_a_b", "one_a_b_2", "one_a_b_3"]


def test_a_permission_is_for_the_tool_of_one_server() -> None:
    box, permissions = toolbox(one=["read", "write"], two=["read"]), Permissions()
    read, write, other = box.tools
    permissions.note(read, Choice.SESSION)
    permissions.note(write, Choice.ONCE)
    permissions.note(other, Choice.NEVER)
    assert [permissions.standing(tool) for tool in box.tools] == [Choice.SESSION, None, Choice.NEVER]


def test_a_permission_by_name_is_for_a_tool_that_a_server_has() -> None:
    box, permissions = toolbox(one=["read"]), Permissions()
    box.use([schema("typed")])
    permissions.allow(["read"], box)
    assert permissions.standing(box.tools[1]) is Choice.SESSION
    for name in ("typed", "rea", ""):
        with pytest.raises(InputError, match=f"no server has a tool '{name}': those there are: read"):
            permissions.allow([name], box)


@pytest.mark.parametrize("text", ["", "a" * 50, "ab cd " * 100_000])
@pytest.mark.parametrize("most", [0, 1, 50])
def test_a_result_takes_no_more_tokens_than_it_may_and_says_what_is_cut(text: str, most: int) -> None:
    count = lambda text: -(-len(text) // 3)  # noqa: E731
    found = fitted(ToolResult(text, is_error=True), most, count)
    assert found.is_error
    if count(text) <= most:
        assert found.text == text
        return
    kept, _, note = found.text.rpartition("[cut here: ")
    kept = kept.removesuffix("\n")
    assert text.startswith(kept)
    assert most - 1 <= count(kept) <= most
    assert note == f"{len(text) - len(kept):,} of {len(text):,} characters do not fit]"


@pytest.mark.parametrize(
    ("version", "words"), [(None, "need the package mcp:"), ("1.27.0", "2 or later, found 1.27.0")]
)
def test_a_package_that_is_missing_or_old_is_told_with_how_to_install_it(
    version: str | None, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(name: str) -> str:
        if version is None:
            raise importlib.metadata.PackageNotFoundError
        return version

    monkeypatch.setattr(importlib.metadata, "version", found)
    with pytest.raises(InputError) as error:
        check_installed()
    assert words in str(error.value)
    assert str(error.value).endswith('pip install "afmoe-mlx[mcp]" installs it')
