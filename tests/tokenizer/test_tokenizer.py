"""Reading a tokenizer's folder: ids, special tokens, when to stop, and errors that name the file."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken

from afmoe_mlx.errors import TokenizerError
from afmoe_mlx.tokenizer import Tokenizer
from helpers import tiny_tokenizers

ADDED_TOKEN = {"content": "</s>", "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}


def load(folder: Path, **files: Any) -> Tokenizer:
    return Tokenizer.from_folder(tiny_tokenizers.save(folder, **files))


def one_line_error(folder: Path) -> str:
    with pytest.raises(TokenizerError) as raised:
        Tokenizer.from_folder(folder)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@given(text=st.text(max_size=32))
def test_byte_level_text_survives_encode_and_decode(text: str) -> None:
    tokenizer = Tokenizer(tiny_tokenizers.byte_level())
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("unknown", [-1, -(2**40), 10**6, 2**32, 2**70])
def test_decode_prints_nothing_for_unknown_ids(unknown: int) -> None:
    tokenizer = Tokenizer(tiny_tokenizers.byte_level())
    assert tokenizer.decode([*tokenizer.encode("hello"), unknown]) == "hello"


def test_decode_skips_special_tokens_on_request() -> None:
    tokenizer = Tokenizer(tiny_tokenizers.byte_level())
    assert tokenizer.decode([0, *tokenizer.encode("hello"), 3], skip_special_tokens=True) == "hello"


def test_a_lone_surrogate_is_an_error_of_ours() -> None:
    with pytest.raises(TokenizerError, match="surrogate"):
        Tokenizer(tiny_tokenizers.byte_level()).encode("a\udcffb")


def test_vocab_size_counts_added_tokens(tmp_path: Path) -> None:
    backend = tiny_tokenizers.byte_level()
    size = backend.get_vocab_size()
    assert (
        load(tmp_path, tokenizer=backend, tokenizer_config={"extra_special_tokens": ["<new>"]}).vocab_size == size + 1
    )


def test_special_tokens_may_be_strings_or_objects(tmp_path: Path) -> None:
    config = {"bos_token": "<s>", "eos_token": ADDED_TOKEN, "pad_token": None}
    tokenizer = load(tmp_path, tokenizer_config=config)
    assert (tokenizer.bos_token, tokenizer.bos_token_id) == ("<s>", 0)
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("</s>", 1)
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == (None, None)


def test_special_tokens_map_counts_where_the_config_lists_no_added_tokens(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, tokenizer_config={"eos_token": "<s>"}, special_tokens_map={"eos_token": ADDED_TOKEN})
    assert tokenizer.eos_token == "</s>"


def test_special_tokens_map_is_ignored_where_the_config_lists_its_added_tokens(tmp_path: Path) -> None:
    config = {"eos_token": "<s>", "added_tokens_decoder": {"1": ADDED_TOKEN | {"special": True}}}
    assert load(tmp_path, tokenizer_config=config, special_tokens_map={"eos_token": ADDED_TOKEN}).eos_token == "<s>"


def test_special_tokens_of_the_models_own_have_names(tmp_path: Path) -> None:
    config = {"image_token": "<img>", "extra_special_tokens": {"audio_token": "<audio>"}}
    tokens = load(tmp_path, tokenizer_config=config).special_tokens
    assert tokens == {"image_token": "<img>", "audio_token": "<audio>"}


def test_a_named_token_is_special_even_if_tokenizer_json_denies_it(tmp_path: Path) -> None:
    backend = tiny_tokenizers.byte_level()
    backend.add_tokens([AddedToken("<end>", special=False)])
    tokenizer = load(tmp_path, tokenizer=backend, tokenizer_config={"eos_token": "<end>"})
    assert tokenizer.decode(tokenizer.encode("hello<end>"), skip_special_tokens=True) == "hello"


@pytest.mark.parametrize("flag", [True, False])
def test_add_bos_token_in_the_config_changes_nothing(tmp_path: Path, flag: bool) -> None:
    config = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": flag, "add_eos_token": flag}
    plain = load(tmp_path / "plain").encode("hello")
    assert load(tmp_path / "flag", tokenizer_config=config).encode("hello") == plain


def test_encode_neither_truncates_nor_pads(tmp_path: Path) -> None:
    backend = tiny_tokenizers.byte_level()
    expected = backend.encode("hello world").ids
    backend.enable_truncation(1)
    backend.enable_padding(length=64, pad_token="</s>", pad_id=1)
    assert load(tmp_path, tokenizer=backend).encode("hello world") == expected


def test_generation_config_is_given_as_parsed(tmp_path: Path) -> None:
    assert load(tmp_path, generation_config={"temperature": 0.5}).generation_config == {"temperature": 0.5}


def test_generation_config_is_empty_where_absent(tmp_path: Path) -> None:
    assert load(tmp_path).generation_config == {}


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({"eos_token_id": 3}, {"eos_token_id": 2}, {1, 3}),
        ({"eos_token_id": [2, 3]}, {}, {1, 2, 3}),
        ({"eos_token_id": None}, {"eos_token_id": [2]}, {1, 2}),
        ({}, {"eos_token_id": 3}, {1, 3}),
        ({}, {}, {1}),
    ],
)
def test_a_generation_stops_at_the_most_specific_ids_and_the_tokenizers_own(
    tmp_path: Path, generation: dict[str, Any], config: dict[str, Any], expected: set[int]
) -> None:
    own = {"eos_token": "</s>"}
    tokenizer = load(tmp_path, tokenizer_config=own, generation_config=generation, config=config)
    assert tokenizer.eos_token_ids == expected


def test_extra_eos_tokens_are_texts_or_ids_and_leave_the_original_alone(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, tokenizer_config={"eos_token": "</s>"})
    assert tokenizer.with_extra_eos(["<|im_end|>", "2"]).eos_token_ids == {1, 2, 3}
    assert tokenizer.eos_token_ids == {1}


@pytest.mark.parametrize("token", ["<nope>", "99999", "-1", "9" * 5000, "", "\udcff"])
def test_an_unknown_extra_eos_token_is_an_error(token: str) -> None:
    with pytest.raises(TokenizerError, match="no token"):
        Tokenizer(tiny_tokenizers.byte_level()).with_extra_eos([token])


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    assert "absent: not a folder" in one_line_error(tmp_path / "absent")


def test_a_missing_tokenizer_json_is_named_with_a_way_out(tmp_path: Path) -> None:
    message = one_line_error(tmp_path)
    assert "tokenizer.json: no such file" in message
    assert "save_pretrained" in message


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"{", b"\xff\xfe", b'{"model": {"type": "Nope"}}'])
def test_a_damaged_tokenizer_json_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    assert str(tmp_path / "tokenizer.json") in one_line_error(tmp_path)


FILES = ["tokenizer_config", "special_tokens_map", "generation_config", "config", "chat_template"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", ["", "{", "[]", "null", "[" * 100_000], ids=lambda text: text[:4] or "empty")
def test_malformed_json_is_named(tmp_path: Path, name: str, content: str) -> None:
    files: dict[str, Any] = {name: content}
    tiny_tokenizers.save(tmp_path, **files)
    assert f"{name}.json" in one_line_error(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("generation_config", {"eos_token_id": "2"}),
        ("generation_config", {"eos_token_id": [1, True]}),
        ("config", {"eos_token_id": 1.5}),
        ("tokenizer_config", {"bos_token": 5}),
        ("tokenizer_config", {"bos_token": {"text": "<s>"}}),
        ("tokenizer_config", {"bos_token": "\ud800"}),
        ("tokenizer_config", {"added_tokens_decoder": ["<s>"]}),
        ("tokenizer_config", {"added_tokens_decoder": {"one": "<s>"}}),
        ("tokenizer_config", {"extra_special_tokens": "<s>"}),
        ("tokenizer_config", {"model_specific_special_tokens": ["<s>"]}),
        ("tokenizer_config", {"chat_template": 5}),
        ("tokenizer_config", {"chat_template": [{"name": "default"}]}),
        ("chat_template", {"chat_template": ["{{ messages }}"]}),
        ("special_tokens_map", {"eos_token": 5}),
    ],
)
def test_a_value_of_the_wrong_kind_is_named_with_its_file(tmp_path: Path, name: str, content: dict[str, Any]) -> None:
    files: dict[str, Any] = {name: content}
    tiny_tokenizers.save(tmp_path, **files)
    assert f"{name}.json" in one_line_error(tmp_path)


def test_importing_and_encoding_needs_no_jinja_and_no_framework(tmp_path: Path) -> None:
    tiny_tokenizers.save(tmp_path)
    code = (
        "import sys; from afmoe_mlx.tokenizer import Tokenizer; "
        f"Tokenizer.from_folder({str(tmp_path)!r}).encode('hello'); "
        "print([m for m in ('jinja2', 'transformers', 'torch', 'mlx_lm', 'typer', 'rich') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


CONFIGS: list[dict[str, Any]] = [
    {},
    {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True, "add_eos_token": True},
    {"bos_token": "<new>", "eos_token": "<|im_end|>", "additional_special_tokens": ["<extra>", "<|im_start|>"]},
    {"eos_token": "he", "image_token": "<img>", "extra_special_tokens": ["<e1>", "<e2>"]},
    {"eos_token": {"__type": "AddedToken", "special": True} | ADDED_TOKEN, "extra_special_tokens": {"a_token": "<a>"}},
    {"added_tokens_decoder": {"280": {**ADDED_TOKEN, "content": "<tool>", "special": False}}, "eos_token": "<tool>"},
    {"split_special_tokens": True, "eos_token": "</s>"},
]


@pytest.fixture(params=range(len(CONFIGS)))
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    config = json.loads(json.dumps(CONFIGS[request.param])) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    return tiny_tokenizers.save(tmp_path, tokenizer_config=config)


@pytest.mark.reference
def test_ids_and_special_tokens_equal_transformers(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    reference = transformers.AutoTokenizer.from_pretrained(folder)
    ours = Tokenizer.from_folder(folder)
    text = "<s>hello<|im_start|> the<tool><img><e1><e2><a> <extra>world<new></s>"
    assert ours.encode(text) == reference.encode(text)
    assert ours.encode(text, add_special_tokens=False) == reference.encode(text, add_special_tokens=False)
    assert ours.special_tokens == reference.special_tokens_map
    assert (ours.vocab_size, ours.bos_token_id, ours.eos_token_id) == (
        len(reference),
        reference.bos_token_id,
        reference.eos_token_id,
    )
    ids = list(range(ours.vocab_size))
    for skip in (True, False):
        expected = reference.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
        assert ours.decode(ids, skip_special_tokens=skip) == expected


@pytest.mark.reference
def test_special_tokens_map_counts_as_in_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = {"eos_token": "<new eos>", "unk_token": "<new unk>", "extra_special_tokens": ["<e1>"]}
    legacy = {"bos_token": "<new bos>", "eos_token": ADDED_TOKEN, "extra_special_tokens": ["<e2>", "<e1>"]}
    tiny_tokenizers.save(tmp_path, tokenizer_config=config, special_tokens_map=legacy)
    reference = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    ours = Tokenizer.from_folder(tmp_path)
    text = "<new bos>hello<new unk><new eos><e1><e2></s>"
    assert ours.special_tokens == reference.special_tokens_map
    assert ours.encode(text) == reference.encode(text)


@pytest.mark.reference
def test_a_folder_that_transformers_saved_loads_alike(folder: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    saved = tmp_path / "saved"
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(saved)
    ours, resaved = Tokenizer.from_folder(folder), Tokenizer.from_folder(saved)
    assert resaved.special_tokens == ours.special_tokens
    assert resaved.encode("<s>hello<|im_end|>") == ours.encode("<s>hello<|im_end|>")
