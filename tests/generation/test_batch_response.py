"""Several prompts at once get the answers that each gets alone, in order, and errors before anything runs."""

from threading import Thread
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from afmoe_mlx import batch_generate, load, stream_generate
from afmoe_mlx.cache import PrefixStore
from afmoe_mlx.errors import InputError, OptionError, TokenizerError
from afmoe_mlx.generation import BatchAnswers, GenerationChunk
from afmoe_mlx.models import CausalLM
from afmoe_mlx.tokenizer import Tokenizer
from helpers.tiny import ARCHITECTURES, scripted, tiny_folder

Loaded = tuple[CausalLM, Tokenizer]

PROMPTS: list[Any] = ["hello world", [5, 6, 7] * 9, "the world says hello, " * 3, np.array([9, 4]), "x"]
SAMPLED = {"temperature": 1.0, "seed": 3}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return load(tiny_folder(tmp_path_factory.mktemp("model"), request.param))


@pytest.fixture(scope="module")
def afmoe(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return load(tiny_folder(tmp_path_factory.mktemp("model")))


def alone(loaded: Loaded, prompt: Any, **options: Any) -> list[GenerationChunk]:
    return list(stream_generate(*loaded, prompt, **options))


def check(loaded: Loaded, prompts: list[Any], each: list[dict[str, Any]], **more: Any) -> Any:
    """Texts, tokens and ends are those of each prompt alone."""
    found = batch_generate(*loaded, prompts, each=each, **more)
    for i, (prompt, options) in enumerate(zip(prompts, each, strict=True)):
        chunks = alone(loaded, prompt, **options)
        ends = loaded[1].with_extra_eos(options.get("extra_eos_token", [])).eos_token_ids
        assert found.texts[i] == "".join(chunk.text for chunk in chunks), options
        assert found.token_ids[i] == [chunk.token for chunk in chunks if chunk.token not in ends], options
        assert (found.finish_reasons[i], found.violations[i]) == (chunks[-1].finish_reason, chunks[-1].violation)
    return found


def test_each_of_several_gets_the_answer_that_it_gets_alone_in_order(loaded: Loaded) -> None:
    said = alone(loaded, "x", max_tokens=9)
    each: list[dict[str, Any]] = [
        {"max_tokens": 7},
        {"max_tokens": 12, **SAMPLED, "top_p": 0.9, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
        {"max_tokens": 5, **SAMPLED, "top_k": 5, "presence_penalty": 0.5, "logit_bias": {3: 2.0}},
        {"max_tokens": 3, "sampler": lambda logprobs: mx.argmin(logprobs, axis=-1)},
        {"max_tokens": 9, "extra_eos_token": [str(said[4].token)]},
    ]
    found = check(loaded, PROMPTS, each, max_rows=3)
    assert found.finish_reasons[4] == "stop"
    assert found.stats.generation_tokens == sum(map(len, found.token_ids)) + found.finish_reasons.count("stop")
    assert found.stats.prompt_tokens == sum(len(alone_prompt(loaded, prompt)) for prompt in PROMPTS)
    assert 0 < found.stats.lone_prompt_tokens < found.stats.prompt_tokens
    assert found.stats.generation_steps < found.stats.generation_tokens
    times = found.stats.prompt_time + found.stats.decode_time + found.stats.overhead_time
    assert found.stats.wall_time == pytest.approx(times)


def alone_prompt(loaded: Loaded, prompt: Any) -> list[int]:
    return loaded[1].encode(prompt) if isinstance(prompt, str) else list(prompt)


def test_stops_budgets_and_constraints_hold_in_company(loaded: Loaded) -> None:
    text = "".join(chunk.text for chunk in alone(loaded, "hello", max_tokens=20))
    thinking = "<think>\nhello"
    schema = {"type": "array", "items": {"type": "integer", "maximum": 9}, "maxItems": 3}
    found = check(
        loaded,
        ["hello", "<think>\n", "x<think>\n", thinking, "hello", "hello", "<think>\n"],
        [
            {"max_tokens": 20, "stop": [text[4:7], "\0"]},
            {"max_tokens": 24, "reasoning_budget": 4},
            {"max_tokens": 24, "reasoning_budget": 0, **SAMPLED, "repetition_penalty": 1.2},
            {"max_tokens": 4, "reasoning_budget": 9},
            {"max_tokens": 16, "json_schema": schema, **SAMPLED},
            {"max_tokens": 3, "regex": "[a-c]{9}", "presence_penalty": 0.5},
            {"max_tokens": 24, "reasoning_budget": 3, "json_schema": schema},
        ],
    )
    assert all("</think>" in found.texts[i] for i in (1, 2, 6))
    assert found.violations[5] is not None


def test_a_token_of_a_character_in_parts_waits_for_the_rest(afmoe: Loaded) -> None:
    ids = afmoe[1].encode("é", add_special_tokens=False)
    batch = BatchAnswers(*afmoe)
    batch.add("x", sampler=scripted([*ids, *ids]), max_tokens=2 * len(ids))
    texts = []
    while batch:
        texts += [made.text for _, made in batch.step() if isinstance(made, GenerationChunk)]
    assert "".join(texts) == "éé"
    assert len(ids) < 2 or "" in texts


def test_answers_come_and_go_at_any_time(afmoe: Loaded) -> None:
    batch, texts = BatchAnswers(*afmoe, max_rows=2), dict[Any, str]()
    first, second, third = (batch.add(prompt, max_tokens=12) for prompt in ("hello", "world", "hello world"))
    late: Any = None
    while batch:
        for answer, made in batch.step():
            assert isinstance(made, GenerationChunk)
            texts[answer] = texts.get(answer, "") + made.text
            if answer is first and made.generation_tokens == 3:
                batch.remove(first, first)
                late = batch.add("x", max_tokens=2)
    assert len(first.request.answer) == 3
    for answer, prompt, count in ((second, "world", 12), (third, "hello world", 12), (late, "x", 2)):
        assert texts[answer] == "".join(chunk.text for chunk in alone(afmoe, prompt, max_tokens=count))
    batch.remove(first, late)


def test_what_one_thread_makes_another_may_read(afmoe: Loaded) -> None:
    batch, found = BatchAnswers(*afmoe), list[Any]()
    for seed in range(2):
        batch.add("hello", max_tokens=2, temperature=1.0, seed=seed, repetition_penalty=1.2)

    def run() -> None:
        while batch:
            found.extend(made for _, made in batch.step())

    thread = Thread(target=run)
    thread.start()
    thread.join()
    assert [mx.exp(chunk.logprobs).sum().item() for chunk in found] == pytest.approx([1] * 4)


def test_an_answer_that_fails_by_its_own_function_leaves_the_others(afmoe: Loaded) -> None:
    def fail(_: mx.array) -> mx.array:
        raise ValueError("no")

    batch = BatchAnswers(*afmoe)
    bad, good = batch.add("hello", sampler=fail), batch.add("hello", max_tokens=3)
    found: dict[Any, list[Any]] = {bad: [], good: []}
    while batch:
        for answer, made in batch.step():
            found[answer].append(made)
    assert [str(error) for error in found[bad]] == ["no"]
    assert [chunk.token for chunk in found[good]] == [chunk.token for chunk in alone(afmoe, "hello", max_tokens=3)]
    with pytest.raises(ValueError, match="no"):
        batch_generate(*afmoe, ["hello"], sampler=fail)


def test_probabilities_are_those_of_the_tokens(afmoe: Loaded) -> None:
    found = batch_generate(*afmoe, ["hello", "x"], max_tokens=[3, 2], return_logprobs=True, return_token_ids=True)
    for prompt, count, logprobs in zip(["hello", "x"], [3, 2], found.logprobs or [], strict=True):
        expected = [chunk.logprobs[chunk.token].item() for chunk in alone(afmoe, prompt, max_tokens=count)]
        assert logprobs == pytest.approx(expected, abs=1e-5)
    assert batch_generate(*afmoe, ["x"], max_tokens=1).logprobs is None


def test_a_store_knows_what_prompts_have_in_common(afmoe: Loaded) -> None:
    store = PrefixStore(afmoe[0], block_size=4)
    prompt = [7, 8, 9, 10] * 3
    first = batch_generate(*afmoe, [prompt], store=store, max_tokens=4)
    again = batch_generate(*afmoe, [[*prompt, 5], [3]], store=store, max_tokens=4)
    assert (first.stats.prompt_tokens, again.stats.prompt_tokens) == (12, 2)
    assert again.texts[0] == "".join(chunk.text for chunk in alone(afmoe, [*prompt, 5], max_tokens=4))


def test_verbose_prints_the_figures(afmoe: Loaded, capsys: pytest.CaptureFixture[str]) -> None:
    batch_generate(*afmoe, ["x"], max_tokens=1, verbose=True)
    assert capsys.readouterr().out.startswith("Prompt: 1 tokens, ")
    assert batch_generate(*afmoe, [], verbose=False).texts == []


@pytest.mark.parametrize(
    ("prompts", "options", "error", "words"),
    [
        ("hello", {}, InputError, "prompts is 'hello': expected a list"),
        (5, {}, InputError, "prompts is 5: expected a list"),
        (["x", ""], {}, InputError, r"prompts\[1\]: the prompt is empty"),
        (["x", "hello " * 600], {}, InputError, r"prompts\[1\]: .*context"),
        (["x", [5] * 600], {}, InputError, r"prompts\[1\]: the prompt has 600 tokens"),
        ([5, 6], {}, InputError, r"prompts\[0\]: the prompt is neither text nor"),
        (["x", "y"], {"max_tokens": [3]}, InputError, "max_tokens has 1 entries for 2 prompts"),
        (["x", "y"], {"max_tokens": [3, 0]}, InputError, r"prompts\[1\]: max_tokens is 0"),
        (["x"], {"each": []}, InputError, "each has 0 entries for 1 prompts"),
        (["x"], {"each": [{"top_p": 3}]}, InputError, r"prompts\[0\]: top_p"),
        (["x"], {"extra_eos_token": ["nothing"]}, TokenizerError, r"prompts\[0\]: "),
        (["x"], {"temprature": 1}, OptionError, "temprature"),
        (["x"], {"prompt_lookup": 0}, InputError, r"prompts\[0\]: prompt_lookup"),
        (["x"], {"draft_model": "x"}, InputError, r"prompts\[0\]: draft_model is a str"),
        (["x"], {"seen": [3]}, OptionError, "no option seen where several prompts are"),
        (["x"], {"max_rows": 0}, InputError, "max_rows"),
        (["x"], {"prefill_step_size": 0}, InputError, "prefill_step_size"),
        (["x"], {"prompt_caches": [1]}, OptionError, "ours is store"),
    ],
)
def test_what_cannot_be_is_refused_with_the_prompts_index_before_anything_runs(
    afmoe: Loaded, prompts: Any, options: dict[str, Any], error: type[Exception], words: str, monkeypatch: Any
) -> None:
    monkeypatch.setattr(type(afmoe[0]), "__call__", lambda *_, **__: pytest.fail("the model was run"))
    with pytest.raises(error, match=words):
        batch_generate(*afmoe, prompts, **options)
