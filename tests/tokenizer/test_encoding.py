"""Long texts: encoded as short ones are, heard by Ctrl-C, and refused before the work where they cannot fit."""

import os
import signal
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from afmoe_mlx.errors import ContextFullError, TokenizerError
from afmoe_mlx.tokenizer import Tokenizer, encoding
from helpers import tiny_tokenizers

KINDS = (tiny_tokenizers.byte_level, tiny_tokenizers.byte_fallback, tiny_tokenizers.metaspace)
TEXTS = st.lists(
    st.sampled_from(["hello", " ", "the world", "\n", "é", "日本", "🙂", "<|im_start|>", "<|im_", "a", "ab ", "   "]),
    max_size=200,
).map("".join)


@pytest.fixture(autouse=True)
def all_texts_are_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "LONG", 1)


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.__name__)
def backend(request: pytest.FixtureRequest) -> Any:
    return request.param()


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXTS)
def test_a_long_text_has_the_tokens_that_a_short_one_would_have(backend: Any, text: str) -> None:
    expected = backend.encode(text).ids
    assert encoding.encode(backend, text, add_special_tokens=True) == expected


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXTS, limit=st.integers(1, 60))
def test_no_text_that_fits_is_refused(backend: Any, text: str, limit: int) -> None:
    _refuses_only_what_is_longer(backend, text, limit)


def test_unknown_characters_that_become_one_token_are_not_counted_one_by_one() -> None:
    _refuses_only_what_is_longer(tiny_tokenizers.metaspace(), "hello" * 100, 4)


def _refuses_only_what_is_longer(backend: Any, text: str, limit: int) -> None:
    if encoding.exceeds(backend, text, limit):
        assert len(backend.encode(text, add_special_tokens=False).ids) > limit


class Counting:
    """A tokenizer that knows how many characters it was given."""

    def __init__(self, backend: Any) -> None:
        self._backend, self.characters = backend, 0

    def encode_batch(self, texts: list[str], **options: Any) -> Any:
        self.characters += sum(map(len, texts))
        return self._backend.encode_batch(texts, **options)

    @property
    def model(self) -> Any:
        return self._backend.model

    def get_vocab(self, **options: Any) -> Any:
        return self._backend.get_vocab(**options)


@pytest.mark.parametrize("text", ["the world says hello ", "日本語 ", "= "], ids=["words", "bytes", "signs"])
def test_a_text_that_cannot_fit_is_refused_by_its_beginning(text: str) -> None:
    backend = Counting(tiny_tokenizers.byte_level())
    limit = 500
    assert encoding.exceeds(backend, text * (100_000 // len(text)), limit)
    assert backend.characters < 20 * limit


def test_a_text_longer_than_so_many_of_the_longest_token_is_not_encoded_at_all() -> None:
    backend = Counting(tiny_tokenizers.byte_level())
    longest = max(map(len, backend.get_vocab(with_added_tokens=True)))
    assert encoding.exceeds(backend, " " * (500 * longest + 1), 500)
    assert backend.characters == 0


def test_a_refusal_names_the_context() -> None:
    with pytest.raises(ContextFullError, match="expected fewer than 100, the model's context"):
        Tokenizer(tiny_tokenizers.byte_level()).check_length("hello " * 2000, 100)


def test_damaged_text_is_called_so_however_long_it_is() -> None:
    tokenizer = Tokenizer(tiny_tokenizers.byte_level())
    text = "hello " * 1000 + "\ud800"
    tokenizer.check_length("\ud800" + "a" * 500, 100)
    with pytest.raises(TokenizerError, match="lone surrogate"):
        tokenizer.encode(text)


def test_ctrl_c_is_heard_while_a_long_text_is_encoded() -> None:
    begun, released = threading.Event(), threading.Event()

    def encode_batch_fast(*_: Any, **__: Any) -> Any:
        begun.set()
        os.kill(os.getpid(), signal.SIGINT)
        released.wait()
        return [SimpleNamespace(ids=[])]

    backend = SimpleNamespace(encode_batch_fast=encode_batch_fast)
    with pytest.raises(KeyboardInterrupt):
        encoding.encode(backend, "aaa", add_special_tokens=True)  # type: ignore[arg-type]
    assert begun.is_set()
    released.set()


def test_a_long_text_is_encoded_where_other_threads_run() -> None:
    # what holds Python's lock makes the main thread deaf, in whatever thread it runs
    backend = tiny_tokenizers.byte_level()
    turns, is_done = 0, threading.Event()

    def count() -> None:
        nonlocal turns
        while not is_done.wait(0.001):
            turns += 1

    thread = threading.Thread(target=count)
    thread.start()
    encoding.encode(backend, "the world says hello " * 20_000, add_special_tokens=True)
    is_done.set()
    thread.join()
    assert turns > 1
