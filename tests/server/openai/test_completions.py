"""Completions: prompts in every form, an answer to each; a stream adds up to the whole."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from afmoe_mlx.server.errors import RequestError
from afmoe_mlx.server.openai.completions import COMPLETIONS, Completion
from afmoe_mlx.server.openai.logprobs import LEAST, of_text
from afmoe_mlx.server.question import TokenLogprob
from helpers.endpoints import ask, data, events
from helpers.fake_engine import FakeTokenizer
from helpers.fake_service import FakeService

TOKENIZER: Any = FakeTokenizer()
PROMPTS = [("a", ["a"]), ([1, 2], [[1, 2]]), (["a", "b"], ["a", "b"]), ([[1], [2, 3]], [[1], [2, 3]])]


def service(*texts: str, **more: Any) -> FakeService:
    return FakeService(TOKENIZER, texts or ("Hello.",), **more)


@pytest.mark.parametrize(("prompt", "each"), PROMPTS)
def test_each_prompt_has_its_answers_together(prompt: Any, each: list[Any]) -> None:
    found = service("x", "yy")
    answer = ask(COMPLETIONS, found, prompt=prompt, n=2, seed=5, temperature=1.0)
    assert [question.prompt for question in found.asked] == [one for one in each for _ in range(2)]
    assert [choice["index"] for choice in answer["choices"]] == list(range(2 * len(each)))
    assert [choice["text"] for choice in answer["choices"]] == ["x", "yy"] * len(each)
    assert answer["usage"]["prompt_tokens"] == 7 * len(each)
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 2 * len(each)
    assert len({question.options["seed"] for question in found.asked}) == 2
    Completion.model_validate(answer)


@settings(max_examples=20, deadline=None)
@given(st.text(max_size=12), st.integers(1, 4), st.none() | st.integers(0, 3))
def test_a_stream_adds_up_to_the_whole_answer(text: str, size: int, logprobs: int | None) -> None:
    asked = {"prompt": ["a", "b"], "logprobs": logprobs, "stream_options": {"include_usage": True}}
    (*chunks, done) = data(events(COMPLETIONS, service(text, "<think>", size=size), **asked))
    whole = ask(COMPLETIONS, service(text, "<think>", size=size), **asked)
    assert done == "[DONE]"
    assert chunks.pop()["usage"] == whole["usage"]
    for choice in whole["choices"]:
        parts = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
        assert "".join(part["text"] for part in parts) == choice["text"]
        assert [part["finish_reason"] for part in parts if part["finish_reason"]] == ["stop"]
        told = [part["logprobs"] for part in parts if part["logprobs"]]
        for name, values in (choice["logprobs"] or {}).items():
            assert [value for one in told for value in one[name]] == values


def test_a_stream_that_fails_tells_it_and_still_ends() -> None:
    failing = service("abcdef", failure=RequestError(503, "the engine died"), fails_after=1)
    *_, error, last, done = data(events(COMPLETIONS, failing, prompt="a"))
    assert error["error"]["message"] == "the engine died"
    assert last["choices"][0]["finish_reason"] == "length"
    assert done == "[DONE]"


def test_tokens_are_told_by_their_text_or_their_bytes_and_where_they_begin() -> None:
    half = TokenLogprob(3, b"\xe2\x82", -float("inf"))
    told = of_text([TokenLogprob(1, "né".encode(), -1.0, [half]), TokenLogprob(2, b"x", -2.0)], offset=10)
    assert told == {
        "tokens": ["né", "x"],
        "token_logprobs": [-1.0, -2.0],
        "top_logprobs": [{"bytes:\\xe2\\x82": LEAST}, {}],
        "text_offset": [10, 12],
    }


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [1.5]}, "prompt"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "echo": True}, "echo"),
        ({"prompt": "a", "n": 2, "best_of": 3}, "best_of"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": ["a", "b"], "n": 65}, "prompts"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        ask(COMPLETIONS, service(), **fields)


def test_what_changes_nothing_is_taken() -> None:
    assert ask(COMPLETIONS, service(), prompt="a", suffix=None, echo=False, best_of=1, logprobs=None)["choices"]
