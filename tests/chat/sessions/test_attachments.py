"""Attached files: text alone, named, and between fences that nothing in it can close."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from afmoe_mlx.chat.sessions.attachments import Attachment, read_attachment, with_attachments
from afmoe_mlx.errors import InputError


def test_a_file_is_its_name_and_its_text_before_the_message(tmp_path: Path) -> None:
    (tmp_path / "a b.py").write_text("print('é')\r\n", encoding="utf-8")
    (tmp_path / "empty").write_text("")
    found = [read_attachment(str(tmp_path / name)) for name in ("a b.py", "empty")]
    assert with_attachments(found, "Explain.") == (
        "File a b.py:\n```py\nprint('é')\n```\n\nFile empty:\n```\n```\n\nExplain."
    )
    assert with_attachments([], "Explain.") == "Explain."


@settings(max_examples=80, deadline=None)
@given(st.text(st.sampled_from("`~a \n>-"), max_size=40))
def test_nothing_in_a_file_closes_its_fence(text: str) -> None:
    blocks = MarkdownIt().parse(with_attachments([Attachment("notes.md", text)], "after"))
    fences = [token for token in blocks if token.type == "fence"]
    assert [fence.info for fence in fences] == ["md"]
    assert fences[0].content == (text if text.endswith("\n") or not text else text + "\n")
    assert blocks[-2].content == "after"


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("a b.txt", "a b.txt"),
        ('"a b.txt"', "a b.txt"),
        (r"a\ b.txt", "a b.txt"),
        ("'it'", "'it'"),
        ("it's", "it's"),
        ("~/a b.txt", "a b.txt"),
    ],
)
def test_a_path_is_read_as_it_stands_or_as_a_shell_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str, found: str
) -> None:
    for name in ("a b.txt", "'it'", "it's"):
        (tmp_path / name).write_text(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_attachment(typed).text == found


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x89PNG\r\n\x1a\n", "is a PNG image: expected a text file"),
        (b"%PDF-1.7", "is a PDF document"),
        ("hello".encode("utf-16"), "is UTF-16 text: convert it with `iconv"),
        (b"abc\0def", "is a binary file: expected a text file"),
        ("naïve".encode("latin1"), r"is not UTF-8 \(byte 2\), or no text"),
    ],
)
def test_what_is_no_text_is_called_by_its_name(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(InputError, match=words):
        read_attachment(str(tmp_path / "file"))


def test_only_so_many_bytes_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x" * 100)
    assert read_attachment(str(tmp_path / "file"), max_bytes=100).text == "x" * 100
    with pytest.raises(InputError, match=r"has more than 0\.0 MB: attach a smaller file"):
        read_attachment(str(tmp_path / "file"), max_bytes=99)


@pytest.mark.parametrize("path", ["none", "~nobody-of-that-name/x", "a\0b", "x" * 5000, "", "a 'b"])
def test_what_is_not_there_is_no_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError):
        read_attachment(path)


def test_a_folder_and_what_never_ends_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="is a folder: name a file in it"):
        read_attachment(str(tmp_path))
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(InputError, match="not a file that ends"):
            read_attachment(str(path))


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"\xef\xbb\xbfhello")
    assert read_attachment(str(tmp_path / "file")).text == "hello"


def test_a_name_is_shown_not_obeyed(tmp_path: Path) -> None:
    path = tmp_path / "a\x1b[2J\n`.t`xt"
    path.write_text("hello")
    assert read_attachment(str(path)).block == "File a\\x1b[2J\\n`.t`xt:\n```txt\nhello\n```"
