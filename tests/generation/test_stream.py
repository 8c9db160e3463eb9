"""Generation: the right tokens, ended where they should, with the device never kept waiting."""

import json
import math
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from afmoe_mlx import generate, load, stream_generate
from afmoe_mlx.errors import CheckpointError, InputError
from afmoe_mlx.generation import THE_ANSWER, prefill
from afmoe_mlx.models import CausalLM
from afmoe_mlx.tokenizer import Tokenizer
from helpers.tiny import ARCHITECTURES, scripted, tiny_folder

Loaded = tuple[CausalLM, Tokenizer]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return load(tiny_folder(tmp_path_factory.mktemp("model"), request.param))


def tokens_of(loaded: Loaded, prompt: Any = "hello world", **options: Any) -> list[int]:
    return [chunk.token for chunk in stream_generate(*loaded, prompt, **options)]


def greedy_from_scratch(model: CausalLM, prompt: list[int], count: int) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(model(mx.array([ids]))[0, -1].argmax().item()))
    return ids[len(prompt) :]


def test_temperature_0_takes_the_likeliest_token_of_a_full_forward(loaded: Loaded) -> None:
    model, tokenizer = loaded
    prompt = tokenizer.encode("hello world")
    assert tokens_of(loaded, max_tokens=30) == greedy_from_scratch(model, prompt, 30)


@pytest.mark.parametrize("step", [1, 3, 8, 1000])
def test_any_prefill_step_size_gives_the_same_answer(loaded: Loaded, step: int) -> None:
    prompt = "the world says hello, " * 5
    expected = tokens_of(loaded, prompt, max_tokens=8)
    assert tokens_of(loaded, prompt, max_tokens=8, prefill_step_size=step) == expected


def test_a_cache_continues_where_it_stands(loaded: Loaded) -> None:
    model, tokenizer = loaded
    ids = tokenizer.encode("hello world, hello to the world")
    cache = model.make_cache()
    prefill(model, ids[:6], cache, step_size=4)
    assert tokens_of(loaded, ids[6:], max_tokens=10, cache=cache) == tokens_of(loaded, ids, max_tokens=10)


def test_the_same_seed_gives_the_same_answer_whatever_else_draws(loaded: Loaded) -> None:
    options = {"temperature": 1.5, "max_tokens": 20}
    first = tokens_of(loaded, seed=7, **options)
    mx.random.seed(99)
    mx.random.uniform()
    assert tokens_of(loaded, seed=7, **options) == first
    assert any(tokens_of(loaded, seed=seed, **options) != first for seed in range(3))


def test_chunks_hold_the_whole_text_and_only_the_last_ends(loaded: Loaded) -> None:
    chunks = list(stream_generate(*loaded, "hello", max_tokens=25))
    assert "".join(chunk.text for chunk in chunks) == generate(*loaded, "hello", max_tokens=25)
    assert [chunk.finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
    last = chunks[-1]
    assert (last.prompt_tokens, last.generation_tokens) == (len(loaded[1].encode("hello")), 25)
    assert np.isclose(np.exp(np.array(last.logprobs)).sum(), 1, atol=1e-4)


def test_an_eos_token_ends_the_answer_and_is_not_shown(loaded: Loaded) -> None:
    model, tokenizer = loaded
    plain = tokens_of(loaded, max_tokens=12)
    ending = tokenizer.with_extra_eos([str(plain[5])])
    chunks = list(stream_generate(model, ending, "hello world", max_tokens=12))
    at = plain.index(plain[5])
    assert [chunk.token for chunk in chunks] == plain[: at + 1]
    assert chunks[-1].finish_reason == "stop"
    assert "".join(c.text for c in chunks) == tokenizer.decode(plain[:at])


def test_what_ends_an_answer_is_not_text_and_every_other_token_is(loaded: Loaded) -> None:
    _, tokenizer = loaded
    start, end = (tokenizer.token_to_id(token) for token in ("<|im_start|>", "<|im_end|>"))
    hello = tokenizer.encode("hello")
    said = [start, *hello, 1, *hello, end]
    chunks = list(stream_generate(*loaded, "x", sampler=scripted(said), max_tokens=50))
    assert "".join(chunk.text for chunk in chunks) == "<|im_start|>hello</s>hello"
    assert (len(chunks), chunks[-1].finish_reason) == (len(said), "stop")
    assert generate(*loaded, "x", sampler=scripted(said), skip_special_tokens=True) == "hellohello"
    for lookup in (None, 3):  # guesses end with it too
        options = {"extra_eos_token": ["</s>"], "prompt_lookup": lookup}
        assert generate(*loaded, "x", sampler=scripted(said), **options) == "<|im_start|>hello"


def test_a_stop_string_may_be_a_special_token(loaded: Loaded) -> None:
    _, tokenizer = loaded
    said = [*tokenizer.encode("hello"), tokenizer.token_to_id("<|im_start|>"), *tokenizer.encode("world")]
    chunks = list(stream_generate(*loaded, "x", sampler=scripted(said), stop=["<|im_start|>"]))
    assert ("".join(chunk.text for chunk in chunks), chunks[-1].finish_reason) == ("hello", "stop")
    inside = generate(*loaded, "x", sampler=scripted(said), stop=["lo<|im"])
    assert inside == "hel"


def test_a_stop_string_ends_the_answer_and_never_shows(loaded: Loaded) -> None:
    text = generate(*loaded, "hello", max_tokens=40)
    stop = text[10:13]
    chunks = list(stream_generate(*loaded, "hello", max_tokens=40, stop=[stop]))
    assert "".join(chunk.text for chunk in chunks) == text[: text.index(stop)]
    assert chunks[-1].finish_reason == "stop"


def test_defaults_come_from_generation_config_and_arguments_win(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "m")
    greedy = tokens_of(load(folder), max_tokens=20)
    (folder / "generation_config.json").write_text('{"do_sample": true, "temperature": 3.0}')
    warm = load(folder)
    assert any(tokens_of(warm, max_tokens=20, seed=seed) != greedy for seed in range(3))
    assert tokens_of(warm, max_tokens=20, temperature=0) == greedy


def test_the_limit_and_the_stop_strings_of_generation_config_count_unless_told_otherwise(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "m")
    text = generate(*load(folder), "hello", max_tokens=40)
    (folder / "generation_config.json").write_text(json.dumps({"max_new_tokens": 40, "stop_strings": [text[10:13]]}))
    model = load(folder)
    assert generate(*model, "hello", stop=()) == text
    assert generate(*model, "hello") == text[: text.index(text[10:13])]
    assert generate(*model, "hello", stop=[text[4:6]]) == text[: text.index(text[4:6])]
    assert len(tokens_of(model, "hello", max_tokens=3)) == 3


def test_figures_are_the_devices_and_the_first_unknown_token_is_named(loaded: Loaded) -> None:
    last = list(stream_generate(*loaded, "hello", max_tokens=2))[-1]
    assert last.peak_memory_gb == mx.get_peak_memory() / 1e9 > 0
    with pytest.raises(InputError, match="token 90001:"):
        generate(*loaded, [5, 90001, 90002])


PENALTIES: dict[str, Any] = {
    "repetition_penalty": 1.3,
    "repetition_context_size": 0,
    "presence_penalty": 0.5,
    "presence_context_size": 0,
    "frequency_penalty": 0.3,
    "frequency_context_size": 0,
    "no_repeat_ngram_size": 2,
    "logit_bias": {3: -1.0},
}


def test_penalties_see_the_whole_text_wherever_it_is_cut_into_what_was_seen_and_the_prompt(loaded: Loaded) -> None:
    model, tokenizer = loaded
    ids = tokenizer.encode("hello world, hello to the world")
    expected = tokens_of(loaded, ids, max_tokens=10, **PENALTIES)
    assert expected != tokens_of(loaded, ids, max_tokens=10)
    for cut in (1, 6, len(ids) - 1):
        cache = model.make_cache()
        prefill(model, ids[:cut], cache, step_size=4)
        assert tokens_of(loaded, ids[cut:], cache=cache, seen=ids[:cut], max_tokens=10, **PENALTIES) == expected
    went_on = [*ids, *expected[:4]]
    assert tokens_of(loaded, went_on, max_tokens=6, **PENALTIES) == expected[4:]


def test_penalties_of_the_answer_alone_leave_out_the_prompt_and_what_was_seen(loaded: Loaded) -> None:
    model, tokenizer = loaded
    ids = tokenizer.encode("hello world")
    (likeliest,) = tokens_of(loaded, ids, max_tokens=1)
    assert likeliest not in ids
    options = {"presence_penalty": -1e9, "presence_context_size": THE_ANSWER, "max_tokens": 5}
    assert tokens_of(loaded, ids, **options) == [likeliest] * 5
    cache = model.make_cache()
    prefill(model, ids[:2], cache)
    assert tokens_of(loaded, ids[2:], cache=cache, seen=ids[:2], **options) == [likeliest] * 5


def test_own_sampler_and_logits_processors_take_the_place_of_options(loaded: Loaded) -> None:
    seen: list[int] = []

    def forbid(tokens: mx.array, logits: mx.array) -> mx.array:
        seen.append(tokens.size)
        return mx.where(mx.arange(logits.shape[-1]) == 7, 1e9, logits)

    assert tokens_of(loaded, max_tokens=4, logits_processors=[forbid]) == [7] * 4
    prompt = len(loaded[1].encode("hello world"))
    assert seen == [prompt, prompt + 1, prompt + 2, prompt + 3]
    assert tokens_of(loaded, max_tokens=3, sampler=lambda logprobs: mx.array([5])) == [5] * 3


@pytest.mark.parametrize(
    ("prompt", "options", "words"),
    [
        ("", {}, "empty"),
        ([], {}, "empty"),
        ([1, 10**6], {}, "token 1000000"),
        ([-1], {}, "token -1"),
        ([1.5], {}, "neither text"),
        (b"hello", {}, "neither text"),
        (5, {}, "neither text"),
        (mx.array(3), {}, "neither text"),
        (np.array([[1, 2]]), {}, "neither text"),
        (np.array([1.0]), {}, "neither text"),
        ([5], {"seen": 5}, "seen is not a list"),
        ("hello", {"max_tokens": 0}, "max_tokens"),
        ("hello", {"max_tokens": True}, "max_tokens"),
        ("hello", {"max_tokens": np.bool_(True)}, "max_tokens"),
        ("hello", {"max_tokens": 5.0}, "max_tokens"),
        ("hello", {"prefill_step_size": 0}, "prefill_step_size"),
        ("hello", {"temperature": -1.0}, "temperature"),
        ("hello", {"top_p": 2.0}, "top_p"),
        ("hello", {"stop": [""]}, "stop"),
        ("hello " * 600, {}, "context"),
        ("hello", {"logit_bias": {10**6: 1.0}}, "logit_bias has token 1000000: expected ids from 0 to"),
        ([5], {"seen": [10**6]}, "seen has token 1000000"),
        ([5], {"seen": [-1]}, "seen has token -1"),
        ("hello", {"presence_penalty": "x"}, "presence_penalty"),
        ("hello", {"extra_eos_token": "x"}, "extra_eos_token"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_runs(
    loaded: Loaded, prompt: Any, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        stream_generate(*loaded, prompt, **options)


@pytest.mark.parametrize("kind", [tuple, np.array, mx.array, np.uint16, lambda ids: [mx.array(i) for i in ids]])
def test_token_ids_may_be_any_librarys_integers(loaded: Loaded, kind: Any) -> None:
    ids = loaded[1].encode("hello world")
    assert tokens_of(loaded, kind(ids), max_tokens=4) == tokens_of(loaded, ids, max_tokens=4)
    assert tokens_of(loaded, list(kind(ids)), max_tokens=4) == tokens_of(loaded, ids, max_tokens=4)


def test_counts_may_be_numpys_integers(loaded: Loaded) -> None:
    counts = {"max_tokens": 9, "prefill_step_size": 2, "prompt_lookup": 3, "num_draft_tokens": 2}
    small = {name: np.uint8(count) for name, count in counts.items()}
    assert tokens_of(loaded, "hello " * 100, **small) == tokens_of(loaded, "hello " * 100, **counts)


def test_what_a_cache_has_seen_may_be_an_array(loaded: Loaded) -> None:
    model, tokenizer = loaded
    ids = tokenizer.encode("hello world, hello to the world")
    options = {"max_tokens": 6, "repetition_penalty": 1.3}
    cache = model.make_cache()
    prefill(model, ids[:6], cache, step_size=4)
    assert tokens_of(loaded, ids[6:], cache=cache, seen=np.array(ids[:6]), **options) == tokens_of(
        loaded, ids, **options
    )


def test_an_answer_ends_at_the_models_context(loaded: Loaded) -> None:
    context = loaded[0].config.max_position_embeddings
    chunks = list(stream_generate(*loaded, [5] * (context - 3), max_tokens=50))
    assert len(chunks) == 3
    assert chunks[-1].finish_reason == "length"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_whose_logits_are_no_numbers_is_damaged(tmp_path: Path, temperature: float) -> None:
    model, tokenizer = load(tiny_folder(tmp_path / "model"))
    model.model.layers[1].post_mlp_layernorm.weight[3] = math.nan
    with pytest.raises(CheckpointError, match="its weights are damaged"):
        next(stream_generate(model, tokenizer, "hello", temperature=temperature))


def test_the_prompts_speed_is_known_with_the_first_token_and_stays(loaded: Loaded) -> None:
    chunks = list(stream_generate(*loaded, "hello to the world", max_tokens=5))
    assert len({chunk.prompt_tps for chunk in chunks}) == 1
    assert 0 < chunks[0].prompt_tps < 1e8
    assert [chunk.generation_tps > 0 for chunk in chunks] == [False, True, True, True, True]
