"""Samples are read from a text whole, from a .jsonl line by line, and a bad line is named by its number."""

import json
from pathlib import Path
from typing import Any

import pytest

from afmoe_mlx.errors import InputError
from afmoe_mlx.tokenizer import Tokenizer
from afmoe_mlx.tokenizer.samples import read_samples
from helpers.tiny import TEMPLATE
from helpers.tiny_tokenizers import byte_level

MESSAGES = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "the world"}]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(byte_level(), chat_templates={"default": TEMPLATE})


def jsonl(path: Path, *lines: Any) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


def test_a_text_is_one_sample_without_its_byte_order_mark(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffhello,\r\nworld é\n".encode())
    assert read_samples(path, tokenizer) == [tokenizer.encode("hello,\r\nworld é\n")]


def test_a_jsonl_gives_a_sample_a_line_texts_plain_and_messages_through_the_template(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"text": "one\u2028line"}, "", {"messages": MESSAGES})
    chat = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=False)
    assert read_samples(path, tokenizer) == [tokenizer.encode("one\u2028line"), chat]
    assert tokenizer.decode(chat).endswith("the world<|im_end|>\n")


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("{not json", "not valid JSON"),
        ("[1]", "a JSON list"),
        ('"text"', "a JSON str"),
        ({"prompt": "a"}, "no messages, and no text"),
        ({"text": 3}, "text is no string"),
        ({"text": "\ud800"}, "lone surrogate"),
        ({"messages": []}, "no list of messages"),
        ({"messages": {"role": "user"}}, "no list of messages"),
        ({"messages": ["hello"]}, "no list of messages"),
        ({"messages": [{"content": "a"}]}, "no list of messages"),
        ({"messages": MESSAGES, "tools": {"name": "f"}}, "tools is no list"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_a_bad_line_is_named_by_its_number(tmp_path: Path, tokenizer: Tokenizer, line: Any, found: str) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"text": "good"}, line)
    with pytest.raises(InputError, match=f"a.jsonl, line 2: .*{found}") as error:
        read_samples(path, tokenizer)
    assert "\n" not in str(error.value)


def test_messages_need_a_template(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"messages": MESSAGES})
    with pytest.raises(InputError, match="line 1: this tokenizer has no chat template"):
        read_samples(path, Tokenizer(byte_level()))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_file_without_text_is_refused(tmp_path: Path, tokenizer: Tokenizer, name: str) -> None:
    (tmp_path / name).write_text(" \n\n")
    with pytest.raises(InputError, match="holds no text"):
        read_samples(tmp_path / name, tokenizer)


def test_what_cannot_be_read_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match=r"not UTF-8 \(byte 3\)"):
        read_samples(tmp_path / "a.txt", tokenizer)
    for path in (tmp_path / "absent.txt", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            read_samples(path, tokenizer)
