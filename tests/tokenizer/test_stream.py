"""Streaming of an answer's text: nothing lost, doubled, or printed before it is final."""

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders

from afmoe_mlx.tokenizer import TextStream, Tokenizer
from helpers import tiny_tokenizers

BACKENDS = {make.__name__: make() for make in (tiny_tokenizers.byte_level, tiny_tokenizers.byte_fallback)}
BACKENDS["metaspace"] = tiny_tokenizers.metaspace()
every_backend = pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS.keys())

MULTILINGUAL = [
    "hello, the world",
    "👩‍👩‍👧‍👦 family, 🏳️‍🌈 flag, 🇫🇷🇯🇵",
    "日本語のテキスト。中文，한국어",
    "مرحبا بالعالم — שלום",
    "e\u0301 n\u0303 a\u0308 ẗ̈ नमस्ते",
    "  two spaces, a tab\t, lines\r\n\n end ",
    "a valid \ufffd of its own",
]


def stream_text(backend: Backend, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
    stream = TextStream(backend, skip_special_tokens=skip_special_tokens)
    return "".join([stream.push(token_id) for token_id in ids]) + stream.finish()


def byte_ids(data: bytes) -> list[int]:
    """The ids of single bytes in the byte-fallback vocabulary."""
    return [3 + byte for byte in data]


def byte_level_ids(data: bytes) -> list[int]:
    """The ids of single bytes in the byte-level vocabulary."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    ids = [BACKENDS["byte_level"].token_to_id(letters[byte]) for byte in data]
    return [token_id for token_id in ids if token_id is not None]


@every_backend
@given(ids=st.lists(st.integers(-3, 300), max_size=24), skip=st.booleans())
def test_pushes_and_finish_equal_decode_for_any_ids(backend: Backend, ids: list[int], skip: bool) -> None:
    assert stream_text(backend, ids, skip_special_tokens=skip) == Tokenizer(backend).decode(
        ids, skip_special_tokens=skip
    )


@every_backend
@given(text=st.text(max_size=24))
def test_pushes_and_finish_equal_decode_for_any_text(backend: Backend, text: str) -> None:
    ids = backend.encode(text).ids
    assert stream_text(backend, ids) == backend.decode(ids)


@every_backend
@given(data=st.data())
def test_what_is_printed_stays_a_prefix_of_the_whole(backend: Backend, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, backend.get_vocab_size() - 1), max_size=16))
    stream, printed = TextStream(backend), ""
    for token_id in ids:
        printed += stream.push(token_id)
        assert backend.decode(ids).startswith(printed)


@pytest.mark.parametrize("text", MULTILINGUAL)
def test_multilingual_text_arrives_whole(text: str) -> None:
    backend = BACKENDS["byte_level"]
    assert stream_text(backend, backend.encode(text).ids) == text


@pytest.mark.parametrize("text", MULTILINGUAL)
def test_multilingual_text_arrives_whole_through_byte_fallback(text: str) -> None:
    backend = BACKENDS["byte_fallback"]
    assert stream_text(backend, backend.encode(text).ids) == text


def test_a_character_prints_with_its_last_byte() -> None:
    stream = TextStream(BACKENDS["byte_level"])
    assert [stream.push(token_id) for token_id in byte_level_ids("a😀b".encode())] == ["a", "", "", "", "😀", "b"]


def test_an_invalid_byte_is_one_mark_and_the_text_after_it_arrives_once() -> None:
    ids = byte_level_ids(b"ab\xffcd")
    assert stream_text(BACKENDS["byte_level"], ids) == "ab\ufffdcd"


def test_an_invalid_byte_after_valid_byte_tokens_loses_nothing() -> None:
    ids = [*byte_ids(b"AB\xff"), BACKENDS["byte_fallback"].token_to_id("▁a") or 0]
    assert stream_text(BACKENDS["byte_fallback"], ids) == "\ufffd\ufffd\ufffd a"


def test_a_skipped_token_inside_a_run_of_bytes_does_not_split_it() -> None:
    ids = [*byte_ids(b"A\xc3"), 1, *byte_ids(b"\xa9")]
    assert stream_text(BACKENDS["byte_fallback"], ids) == "Aé"


def test_finish_prints_an_incomplete_tail_as_decode_does() -> None:
    stream = TextStream(BACKENDS["byte_level"])
    assert [stream.push(token_id) for token_id in byte_level_ids(b"a\xf0\x9f")] == ["a", "", ""]
    assert stream.finish() == "\ufffd"


def test_finish_prints_nothing_twice() -> None:
    stream = TextStream(BACKENDS["byte_level"])
    stream.push(byte_level_ids(b"\xf0")[0])
    assert (stream.finish(), stream.finish()) == ("\ufffd", "")


@pytest.mark.parametrize("unknown", [-1, 10**6, 2**32, 2**70])
def test_an_unknown_id_prints_nothing(unknown: int) -> None:
    stream = TextStream(BACKENDS["byte_level"])
    assert stream.push(unknown) + stream.finish() == ""


def test_special_tokens_print_when_asked_for() -> None:
    ids = [0, *byte_level_ids(b"hi"), 3]
    assert stream_text(BACKENDS["byte_level"], ids, skip_special_tokens=False) == "<s>hi<|im_end|>"


def test_special_tokens_are_skipped_by_default() -> None:
    assert stream_text(BACKENDS["byte_level"], [0, *byte_level_ids(b"hi"), 3]) == "hi"


def test_the_first_space_is_dropped_once() -> None:
    backend = BACKENDS["byte_fallback"]
    stream = TextStream(backend)
    assert [stream.push(token_id) for token_id in backend.encode("a b a").ids] == ["a", " b", " a"]


def test_a_decoder_that_revises_its_text_never_raises() -> None:
    backend = tiny_tokenizers.byte_fallback()
    backend.decoder = decoders.Sequence([decoders.Fuse(), decoders.Replace("ab", "x")])
    ids = [backend.token_to_id(piece) or 0 for piece in ("a", "b", "b", "a")]
    assert stream_text(backend, ids).endswith("ba")
