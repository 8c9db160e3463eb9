"""Examples of every form become the tokens that mlx-lm makes of them, and what is none is named by its line."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from afmoe_mlx.errors import HubError, InputError
from afmoe_mlx.messages import for_template
from afmoe_mlx.tokenizer import Tokenizer
from afmoe_mlx.training.datasets import Dataset
from afmoe_mlx.training.examples import Example, make_examples
from helpers.hub_server import FakeHub, use_hub
from helpers.lessons import write_rows
from helpers.tiny import TEMPLATE
from helpers.tiny_tokenizers import byte_level, save

CHAT = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
WITH_TOOLS = TEMPLATE.replace("{% for", "{% if tools %}{{ tools | tojson }}{% endif %}{% for", 1)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    files: Any = {"tokenizer_config": {"chat_template": WITH_TOOLS, "eos_token": "<|im_end|>"}}
    return Tokenizer.from_folder(save(tmp_path_factory.mktemp("tokenizer"), byte_level(), **files))


def parts(tokenizer: Tokenizer, example: Example) -> tuple[str, str]:
    """The texts that are read, and that are learned."""
    ids = example.tokens.tolist()
    return tokenizer.decode(ids[: example.start]), tokenizer.decode(ids[example.start :])


@pytest.mark.parametrize(
    ("row", "read", "learned"),
    [
        (CHAT, "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", "hello<|im_end|>\n"),
        (
            {"prompt": "hi", "completion": "hello"},
            "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
            "hello<|im_end|>\n",
        ),
        (
            CHAT | {"tools": [{"name": "f"}]},
            '[{"name": "f"}]<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n',
            "hello<|im_end|>\n",
        ),
    ],
    ids=["chat", "completion", "tools"],
)
def test_prompts_are_read_and_answers_learned(
    tokenizer: Tokenizer, row: dict[str, Any], read: str, learned: str
) -> None:
    (masked,) = make_examples([("x", row)], tokenizer, mask_prompt=True)
    (whole,) = make_examples([("x", row)], tokenizer)
    assert parts(tokenizer, masked) == (read, learned)
    assert parts(tokenizer, whole) == ("", read + learned)


OPENAI = {
    "messages": [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "he"}, {"type": "text", "text": "y"}]},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": '{"a": 1}'}}]},
        {"role": "tool", "tool_call_id": "1", "content": "3"},
        {"role": "assistant", "content": "yes"},
    ]
}


def test_messages_are_read_as_they_are_when_a_model_is_asked(tokenizer: Tokenizer) -> None:
    (example,) = make_examples([("x", OPENAI)], tokenizer, mask_prompt=True)
    whole = tokenizer.apply_chat_template(for_template(OPENAI["messages"], tokenizer))
    assert example.tokens.tolist() == whole
    read, learned = parts(tokenizer, example)
    assert learned == "yes<|im_end|>\n"
    assert read.startswith("<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhey<|im_end|>\n")
    assert '{"name": "f", "arguments": {"a": 1}}' in read
    assert "None" not in read


def test_all_of_an_answer_is_learned_where_the_template_begins_it_otherwise(tokenizer: Tokenizer) -> None:
    thinking = tokenizer.with_chat_template(TEMPLATE.replace("assistant\n{% endif", "assistant\n<think>\n{% endif"))
    (example,) = make_examples([("x", CHAT)], thinking, mask_prompt=True)
    assert parts(tokenizer, example)[1] == "hello<|im_end|>\n"


def test_rows_are_mlx_lms_tokens(tokenizer: Tokenizer) -> None:
    theirs = pytest.importorskip("mlx_lm.tuner.datasets")
    for row in (CHAT, CHAT | {"tools": [{"name": "f"}]}, {"prompt": "a", "completion": "b"}, {"text": "c"}):
        for masks in (False, True)[: 1 if "text" in row else 2]:
            expected = theirs.create_dataset([row], tokenizer, SimpleNamespace(mask_prompt=masks)).process(row)
            (example,) = make_examples([("x", row)], tokenizer, mask_prompt=masks)
            assert (example.tokens.tolist(), example.start) == expected


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([{"role": "system", "content": "x"}], "the last message is no answer, which is what --mask-prompt learns"),
        ([*CHAT["messages"], {"role": "user", "content": "x"}], "the last message is no answer"),
        ([{"role": "assistant", "content": "x"}], "the conversation is empty"),
        (
            [{"role": "user", "content": [{"type": "image_url"}]}],
            r"messages\[0\]: content has a part of type 'image_url'",
        ),
    ],
)
def test_a_chat_without_an_answer_or_with_more_than_text_is_refused(
    tokenizer: Tokenizer, messages: list[dict[str, Any]], said: str
) -> None:
    with pytest.raises(InputError, match=rf"x: {said}"):
        make_examples([("x", {"messages": messages})], tokenizer, mask_prompt=True)


def test_a_text_is_learned_whole_and_ended(tokenizer: Tokenizer) -> None:
    (example,) = make_examples([("x", {"text": "some text"})], tokenizer)
    assert parts(tokenizer, example) == ("", "some text<|im_end|>")
    with pytest.raises(InputError, match="a text has no prompt: leave out --mask-prompt"):
        make_examples([("x", {"text": "some text"})], tokenizer, mask_prompt=True)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "train.jsonl:2: no JSON: "),
        ("[1]", "train.jsonl:2: expected a JSON object"),
        ('{"text": "x"}', "train.jsonl:2: an object with text: expected messages, as in the first"),
        ('{"messages": "x"}', "train.jsonl:2: messages: expected a list of objects with role and content"),
        ('{"messages": []}', "train.jsonl:2: messages: expected a list of objects with role and content"),
        ('{"messages": [3]}', "train.jsonl:2: messages: expected a list of objects with role and content"),
        ('{"messages": [{"role": "user"}], "tools": 3}', "train.jsonl:2: "),
        ("[" * 100_000, "train.jsonl:2: no JSON: "),
    ],
)
def test_what_is_no_example_is_named_by_its_line(tokenizer: Tokenizer, tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "train.jsonl").write_text(json.dumps(CHAT) + "\n" + line + "\n")
    with pytest.raises(InputError) as raised:
        make_examples(list(Dataset(str(tmp_path)).rows("train")), tokenizer, mask_prompt=True)
    assert str(raised.value).startswith(said)
    assert "\n" not in str(raised.value)


def test_a_file_of_another_form_or_encoding_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows = list(Dataset(str(write_rows(tmp_path / "train.jsonl", [{"question": "x"}]).parent)).rows("train"))
    expected = "train.jsonl:1: an object with question: expected messages, prompt and completion, or text"
    with pytest.raises(InputError, match=expected):
        make_examples(rows, tokenizer)
    (tmp_path / "train.jsonl").write_bytes(b"\xff")
    with pytest.raises(InputError, match="no UTF-8 at byte 0"):
        list(Dataset(str(tmp_path)).rows("train"))


def test_a_folder_without_examples_is_refused(tmp_path: Path) -> None:
    for name in (str(tmp_path), "no-such-folder", "./no/such"):
        with pytest.raises(InputError, match=r"train\.jsonl"):
            Dataset(name)


def test_of_a_dataset_on_the_hub_its_lines_alone_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = json.dumps(CHAT).encode()
    with FakeHub(tmp_path / "hub") as hub:
        use_hub(monkeypatch, hub.url, tmp_path / "home")
        hub.add("someone/chats", {"train.jsonl": line + b"\n" + line, "other.bin": b"x", "README.md": b"x"})
        hub.add("someone/tables", {"data.parquet": b"x"})
        dataset = Dataset("someone/chats")
        assert [row for _, row in dataset.rows("train")] == [CHAT, CHAT]
        assert list(dataset.rows("valid")) == []
        assert hub.fetched() == {"train.jsonl"}
        with pytest.raises(InputError, match=r"someone/tables has no train\.jsonl: `pip install datasets`"):
            Dataset("someone/tables")
        with pytest.raises(HubError, match="no folder and no dataset on the Hub is called 'someone/none'"):
            Dataset("someone/none")
