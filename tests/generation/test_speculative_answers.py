"""Answers of real tokens, speculated from Python, in a conversation and on the command line."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from afmoe_mlx import generate, load, stream_generate
from afmoe_mlx.chat import Conversation
from afmoe_mlx.command_line.parsing import with_value
from afmoe_mlx.errors import InputError
from afmoe_mlx.generation import (
    DraftModel,
    prefill,
)
from afmoe_mlx.models import CausalLM
from afmoe_mlx.tokenizer import Tokenizer
from helpers.drafting import Always, run
from helpers.tiny import ARCHITECTURES, tiny, tiny_folder

Loaded = tuple[CausalLM, Tokenizer]

REPETITIVE = "hello to the world, hello to the world, hello to the"


@pytest.fixture(scope="module", params=ARCHITECTURES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("models") / "m", request.param)


@pytest.fixture
def loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Loaded:
    """A model whose answers are always speculated on, whatever that costs here."""
    monkeypatch.setattr("afmoe_mlx.generation.speculate.Pace", Always)
    return load(folder)


def ways(loaded: Loaded) -> list[dict[str, Any]]:
    return [{"prompt_lookup": 6}, {"draft_model": loaded[0], "num_draft_tokens": 4}]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 1.2, "top_p": 0.9, "top_k": 20, "seed": 4, "repetition_penalty": 1.2},
    ],
    ids=str,
)
def test_an_answer_is_the_same_chunk_by_chunk(loaded: Loaded, options: dict[str, Any]) -> None:
    plain = list(stream_generate(*loaded, REPETITIVE, max_tokens=24, **options))
    text = "".join(chunk.text for chunk in plain)
    for more in ({}, {"stop": [text[len(text) // 2 :][:2] or "never"]}, {"max_tokens": 7}):
        chosen: dict[str, Any] = {"max_tokens": 24, **options, **more}
        expected = list(stream_generate(*loaded, REPETITIVE, **chosen)) if more else plain
        for way in ways(loaded):
            cache = loaded[0].make_cache()
            found = list(stream_generate(*loaded, REPETITIVE, cache=cache, **chosen, **way))
            fields = [(chunk.text, chunk.token, chunk.finish_reason, chunk.generation_tokens) for chunk in found]
            assert fields == [(c.text, c.token, c.finish_reason, c.generation_tokens) for c in expected]
            assert np.abs(np.stack([c.logprobs for c in found]) - np.stack([c.logprobs for c in expected])).max() < 1e-4
            last = found[-1]
            assert 0 <= last.saved_steps <= last.accepted_tokens <= last.drafted_tokens
            assert last.prompt_tokens - 1 + len(found) <= cache.offset <= last.prompt_tokens + len(found)
    assert expected[-1].drafted_tokens == expected[-1].saved_steps == 0


def test_a_model_that_drafts_for_itself_is_always_right(loaded: Loaded) -> None:
    for temperature in (0.0, 1.0):
        way = {"draft_model": loaded[0], "num_draft_tokens": 4, "temperature": temperature, "seed": 1}
        last = list(stream_generate(*loaded, REPETITIVE, max_tokens=50, **way))[-1]
        assert last.drafted_tokens == last.accepted_tokens > 20
        assert last.saved_steps == last.accepted_tokens


def test_no_guess_goes_beyond_the_end_of_an_answer(loaded: Loaded) -> None:
    model, tokenizer = loaded
    plain = [chunk.token for chunk in stream_generate(*loaded, REPETITIVE, max_tokens=30)]
    ending = tokenizer.with_extra_eos([str(plain[17])])
    expected = [c.token for c in stream_generate(model, ending, REPETITIVE, max_tokens=30)]
    for way in ways(loaded):
        cache = model.make_cache()
        found = [c.token for c in stream_generate(model, ending, REPETITIVE, cache=cache, max_tokens=30, **way)]
        assert found == expected
        assert cache.offset <= len(tokenizer.encode(REPETITIVE)) + len(found)


def test_an_answer_ends_at_the_models_context(loaded: Loaded) -> None:
    context = loaded[0].config.max_position_embeddings
    for way in ways(loaded):
        assert len(list(stream_generate(*loaded, [5] * (context - 9), max_tokens=50, **way))) == 9


def copying(script: Sequence[int]) -> Callable[[mx.array], mx.array]:
    """A sampler that says what is written, and counts on being asked once a token."""
    tokens = iter(script)
    return lambda logprobs: mx.array([next(tokens)])


def test_what_the_cache_has_seen_is_looked_up_too_and_a_sampler_asked_once_a_token(loaded: Loaded) -> None:
    model, tokenizer = loaded
    ids = tokenizer.encode(REPETITIVE)
    script = (3 * ids)[:24]
    last = []
    for seen in ([], ids[:-2]):
        cache = model.make_cache()
        prefill(model, ids[:-2], cache, step_size=100)
        options: dict[str, Any] = {"cache": cache, "max_tokens": 24, "prompt_lookup": 4, "seen": seen}
        chunks = list(stream_generate(model, tokenizer, ids[-2:], sampler=copying(script), **options))
        assert [chunk.token for chunk in chunks] == script
        last.append(chunks[-1])
    assert last[1].accepted_tokens > last[0].accepted_tokens
    assert last[1].saved_steps > 8


def test_a_conversation_is_the_same(loaded: Loaded) -> None:
    model, tokenizer = loaded
    plain = Conversation(model, tokenizer, options={"max_tokens": 25})
    answers = ["".join(c.text for c in plain.reply(text)) for text in ("hello", "the world", "hello")]
    for way in ({"prompt_lookup": 5}, {"draft_model": DraftModel(model, 3)}):
        conversation = Conversation(model, tokenizer, options={"max_tokens": 25, **way})
        for text, answer in zip(("hello", "the world", "hello"), answers, strict=True):
            assert "".join(c.text for c in conversation.reply(text)) == answer


def test_an_answer_stopped_at_a_token_is_continued_from(loaded: Loaded) -> None:
    model, tokenizer = loaded
    for way in ways(loaded):
        conversation = Conversation(model, tokenizer, options={"max_tokens": 40, **way})
        chunks = conversation.reply(REPETITIVE)
        for _ in range(9):
            next(chunks)
        chunks.close()
        conversation.options["max_tokens"] = 8
        answer = "".join(c.text for c in conversation.reply("the world"))
        prompt = tokenizer.apply_chat_template(conversation.messages[:-1], add_generation_prompt=True)
        assert answer == generate(model, tokenizer, prompt, max_tokens=8)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prompt_lookup": 0}, "prompt_lookup is 0"),
        ({"prompt_lookup": False}, "prompt_lookup is False"),
        ({"num_draft_tokens": -1}, "num_draft_tokens is -1"),
        ({"draft_model": ("a", "b")}, "draft_model is a tuple"),
        ({"draft_model": tiny(vocab_size=41)}, "41 tokens"),
        ({"draft_model": tiny(), "prompt_lookup": 2}, "choose one"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(loaded: Loaded, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        stream_generate(*loaded, "hello", **options)
    assert "\n" not in str(error.value)


def test_the_command_says_what_was_drafted_accepted_and_saved(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("afmoe_mlx.generation.speculate.Pace", Always)
    options = ["generate", "--model", str(folder), "-p", REPETITIVE, "-m", "20"]
    plain = run(*options)
    for way in (
        ["--prompt-lookup"],
        ["--prompt-lookup", "3"],
        ["--draft-model", str(folder), "--num-draft-tokens", "2"],
    ):
        result = run(*options, *way)
        assert (result.exit_code, result.stdout) == (0, plain.stdout)
        assert " steps saved" in result.stderr
        value = json.loads(run(*options, *way, "--json").stdout)
        assert value["drafted_tokens"] >= value["accepted_tokens"] >= value["saved_steps"] >= 0
        assert value["drafted_tokens"] > 0 or way[0] == "--prompt-lookup"


def test_the_command_refuses_what_cannot_draft(folder: Path) -> None:
    options = ["generate", "--model", str(folder), "-p", "hello"]
    both = run(*options, "--prompt-lookup", "--draft-model", "demo")
    assert both.exit_code == 2
    other = run(*options, "--draft-model", "demo")
    assert other.exit_code == 1
    assert other.stderr.splitlines()[-1].startswith("error: the draft model's tokenizer")


def test_an_option_without_its_number_gets_one() -> None:
    assert with_value(["-p", "x", "--a"], "--a", "8", str.isdecimal) == ["-p", "x", "--a", "8"]
    assert with_value(["--a", "-p", "x"], "--a", "8", str.isdecimal) == ["--a", "8", "-p", "x"]
    assert with_value(["--a", "3"], "--a", "8", str.isdecimal) == ["--a", "3"]
    assert with_value([], "--a", "8", str.isdecimal) == []
