"""Answers under a constraint: those of a plain loop over masked logits, however they are decoded."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from jsonschema import Draft202012Validator

from afmoe_mlx import generate, load, stream_generate
from afmoe_mlx.cache import PrefixStore
from afmoe_mlx.errors import InputError
from afmoe_mlx.generation import ConstraintOptions, GenerationChunk, SamplingOptions
from afmoe_mlx.generation.constraint import CIRCLES
from afmoe_mlx.generation.processors import make_logits_processors
from afmoe_mlx.messages.reasoning import split_thinking
from afmoe_mlx.models import CausalLM
from helpers.drafting import Always
from helpers.stores import check
from helpers.tiny import ARCHITECTURES, tiny_folder

Loaded = tuple[Any, Any]
THINKS = "{% for message in messages %}{{ message.content.split('</think>')[-1] }}{% endfor %}<think>"
SCHEMA = {
    "type": "object",
    "properties": {
        "hello to": {"type": "string", "maxLength": 6},
        "the world": {"type": "array", "items": {"enum": ["hello", "the", 3]}, "minItems": 2, "maxItems": 4},
        "says": {"type": "integer", "minimum": 0, "maximum": 9999},
    },
    "required": ["hello to", "the world", "says"],
    "additionalProperties": False,
}
PROMPT = 'hello {"hello to": "the", "the world": ["hello", "the", "hello'


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Loaded]:
    names = [*ARCHITECTURES, "thinks"]
    folders = {name: tmp_path_factory.mktemp("model") / "m" for name in names}
    for name in ARCHITECTURES:
        tiny_folder(folders[name], name, vocab_size=290)
    tiny_folder(folders["thinks"], template=THINKS)
    return {name: load(folder) for name, folder in folders.items()}


@pytest.fixture(params=ARCHITECTURES)
def loaded(request: pytest.FixtureRequest, models: dict[str, Loaded], monkeypatch: pytest.MonkeyPatch) -> Loaded:
    """A model whose answers are always speculated on where they may be, whatever that costs here."""
    monkeypatch.setattr("afmoe_mlx.generation.speculate.Pace", Always)
    return models[request.param]


def tokens_of(chunks: Any) -> list[int]:
    return [chunk.token for chunk in chunks]


def text_of(chunks: list[GenerationChunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


def reference(loaded: Loaded, prompt: list[int], limit: int, sampling: dict[str, Any], **rules: Any) -> list[int]:
    """The likeliest tokens of those allowed, all run anew for each."""
    model, tokenizer = loaded
    held = ConstraintOptions(**rules).begin(tokenizer, model.config.vocab_size, prompt)()
    processors = make_logits_processors(SamplingOptions(**sampling))
    tokens = list(prompt)
    while len(tokens) < len(prompt) + limit and tokens[-1] not in tokenizer.eos_token_ids:
        found = held.forced(len(prompt) + limit - len(tokens))
        if not found:
            logits = mx.where(held.mask(), model(mx.array([tokens]))[:, -1], -mx.inf)
            for processor in processors:
                logits = processor(mx.array(tokens), logits)
            found = [mx.argmax(logits).item()]
        for token in found:
            held.advance(token)
        tokens += found
    return tokens[len(prompt) :][:limit]


@pytest.mark.parametrize("sampling", [{}, {"repetition_penalty": 1.4, "logit_bias": {90: 9.0}}], ids=str)
@pytest.mark.parametrize("limit", [1, 9, 90])
def test_an_answer_is_the_plain_loops_over_masked_logits(loaded: Loaded, limit: int, sampling: dict[str, Any]) -> None:
    prompt = loaded[1].encode(PROMPT)
    expected = reference(loaded, prompt, limit, sampling, json_schema=SCHEMA)
    chunks = list(stream_generate(*loaded, prompt, json_schema=SCHEMA, max_tokens=limit, **sampling))
    assert tokens_of(chunks) == expected
    for chunk in chunks:
        assert chunk.logprobs.shape == (290,)
        assert abs(mx.exp(chunk.logprobs).sum().item() - 1) < 1e-3
    if limit == 90:
        Draft202012Validator(SCHEMA).validate(json.loads(text_of(chunks)))
        assert (chunks[-1].finish_reason, chunks[-1].violation) == ("stop", None)
    else:
        assert (chunks[-1].finish_reason, chunks[-1].violation) == ("length", "it ends before it is complete")


@pytest.mark.parametrize(
    ("limit", "sampling"), [(17, {}), (90, {"temperature": 0.9, "top_k": 20, "no_repeat_ngram_size": 2})], ids=str
)
def test_guessing_ahead_changes_nothing(loaded: Loaded, sampling: dict[str, Any], limit: int) -> None:
    options = {"max_tokens": limit, "json_schema": SCHEMA, "seed": 7, **sampling}
    plain = list(stream_generate(*loaded, PROMPT, **options))
    for guesses in (
        {"prompt_lookup": 6},
        {"draft_model": loaded[0]},
        {"draft_model": loaded[0], "num_draft_tokens": 9},
    ):
        guessed = list(stream_generate(*loaded, PROMPT, **guesses, **options))
        assert tokens_of(guessed) == tokens_of(plain)
        assert guessed[-1].violation == plain[-1].violation


@pytest.mark.parametrize(
    "sampling", [{"frequency_penalty": 0.4}, {"presence_penalty": 2.0, "temperature": 0.5}], ids=str
)
def test_penalties_see_what_was_forced_between_guesses(loaded: Loaded, sampling: dict[str, Any]) -> None:
    prompt = "xzwxzwxzwyzwyzwyzwxzwxzwyzw"
    options = {
        "regex": "((w|x|y)zw){16}",
        "seed": 3,
        "frequency_context_size": 0,
        "presence_context_size": 2,
        **sampling,
    }
    plain = list(stream_generate(*loaded, prompt, **options))
    guessed = list(stream_generate(*loaded, prompt, prompt_lookup=7, **options))
    assert text_of(guessed) == text_of(plain)
    assert guessed[-1].accepted_tokens > 1


def test_guesses_that_the_constraint_allows_are_accepted(loaded: Loaded) -> None:
    options = {"regex": "(?s:.{0,40})", "draft_model": loaded[0], "max_tokens": 60}
    last = list(stream_generate(*loaded, PROMPT, **options))[-1]
    assert last.drafted_tokens >= last.accepted_tokens > 3


def test_a_sampler_of_the_callers_is_asked_for_what_is_drawn_alone(models: dict[str, Loaded]) -> None:
    seen: list[mx.array] = []

    def last(logprobs: mx.array) -> mx.array:
        seen.append(logprobs)
        return mx.array([max(i for i, x in enumerate(logprobs[0].tolist()) if x > -mx.inf)])  # type: ignore[arg-type]

    for guesses in ({}, {"prompt_lookup": 5}):
        seen.clear()
        chunks = list(
            stream_generate(*models["afmoe"], PROMPT, regex="hello to the world(a|b){3}", sampler=last, **guesses)
        )
        assert text_of(chunks) == "hello to the worldbbb"
        assert 3 <= len(seen) < len(chunks) - 3
    with pytest.raises(InputError, match="token 0 was chosen, which the constraint forbids"):
        generate(*models["afmoe"], PROMPT, regex="[a-z]{9}", sampler=lambda logprobs: mx.array([0]))


def test_what_must_come_is_run_in_one_step(models: dict[str, Loaded], monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []
    call = CausalLM.__call__

    def counted(self: CausalLM, tokens: mx.array, *rest: Any, **options: Any) -> mx.array:
        lengths.append(tokens.shape[1])
        return call(self, tokens, *rest, **options)

    monkeypatch.setattr(CausalLM, "__call__", counted)
    text = "hello to the world, hello to the world"
    chunks = list(stream_generate(*models["afmoe"], "the", grammar=f'start: "{text}" /[ab]/'))
    assert text_of(chunks)[:-1] == text
    assert len(lengths) == 3  # the prompt, what is forced, and ahead of the end what was drawn
    assert lengths[1] == len(chunks) - 2 > 8


@pytest.mark.parametrize("guesses", [{}, {"prompt_lookup": 7}], ids=str)
def test_a_text_that_goes_round_in_circles_is_ended(
    models: dict[str, Loaded], monkeypatch: pytest.MonkeyPatch, guesses: dict[str, Any]
) -> None:
    monkeypatch.setattr("afmoe_mlx.generation.speculate.Pace", Always)
    parts = {"a": {"type": "string"}, "b": {"type": "array", "items": {"const": "xy"}}, "c": {"enum": ["x" * 90]}}
    schema = {"type": "object", "properties": parts, "required": [*parts], "additionalProperties": False}
    (letter,), (comma,), (quote,) = map(models["afmoe"][1].encode, 'x,"')
    options = {
        "logit_bias": {letter: 90.0, comma: 80.0, quote: 85.0},
        "max_tokens": 400,
        "json_schema": schema,
        **guesses,
    }
    chunks = list(stream_generate(*models["afmoe"], PROMPT, **options))
    value = json.loads(text_of(chunks))
    assert set(value["a"]) == {"x"}
    assert CIRCLES < len(value["a"]) < CIRCLES + 3
    assert 3 < len(value["b"]) < CIRCLES
    assert (chunks[-1].finish_reason, chunks[-1].violation) == ("stop", None)


def test_processors_cannot_forbid_all_that_is_left_nor_allow_what_is_not(models: dict[str, Loaded]) -> None:
    def hostile(tokens: mx.array, logits: mx.array) -> mx.array:
        return mx.where(mx.arange(logits.shape[-1]) == 5, 1e9, -mx.inf)

    assert generate(*models["afmoe"], PROMPT, regex="[xy]{4}", logits_processors=[hostile]).strip("xy") == ""
    assert generate(*models["afmoe"], PROMPT, regex="x{20}|y{20}", no_repeat_ngram_size=2) in ("x" * 20, "y" * 20)


@pytest.mark.parametrize("taken", [1, 4, 17, 30])
@pytest.mark.parametrize("options", [{}, {"prompt_lookup": 4}], ids=["plain", "speculative"])
def test_the_caches_hold_what_was_written_wherever_the_answer_is_left(
    loaded: Loaded, taken: int, options: dict[str, Any]
) -> None:
    model, tokenizer = loaded
    prompt, cache = tokenizer.encode(PROMPT), model.make_cache()
    store = PrefixStore(model, block_size=4)
    chunks = stream_generate(*loaded, prompt, json_schema=SCHEMA, cache=cache, store=store, max_tokens=60, **options)
    answer = [next(chunks).token for _ in range(taken)]
    chunks.close()  # type: ignore[attr-defined]
    sequence = [*prompt, *answer]
    assert cache.offset <= len(sequence)
    assert check(store, sequence) >= (cache.offset - 1) // 4 * 4
    rest = [*sequence[cache.offset :], 9]
    assert tokens_of(stream_generate(*loaded, rest, cache=cache, max_tokens=6)) == tokens_of(
        stream_generate(*loaded, [*sequence, 9], max_tokens=6)
    )


def dictated(loaded: Loaded, text: str, prompt: str, **options: Any) -> str:
    """What becomes of an answer of a model that would write `text`, a character a token, then Z for ever."""
    model, tokenizer = loaded
    ids = tokenizer.encode(prompt)
    script = [token for character in text.ljust(99, "Z") for token in tokenizer.encode(character)]

    def dictate(tokens: mx.array, logits: mx.array) -> mx.array:
        wanted = mx.arange(logits.shape[-1]) == script[tokens.size - len(ids)]
        return mx.where(wanted & (logits > -mx.inf), 1e9, logits)

    return text_of(list(stream_generate(model, tokenizer, ids, logits_processors=[dictate], max_tokens=60, **options)))


@pytest.mark.parametrize("guesses", [{}, {"prompt_lookup": 4}], ids=str)
@pytest.mark.parametrize(
    ("prompt", "text", "thought"),
    [
        ("hello <think>\n", "aZ{</th></think>\n\nZZ", "aZ{</th>"),
        ("hello <think>", "</think>Z", ""),
        ("hello", "<think>aaa</think>\n99", "aaa"),
        ("hello", "Z<think>", ""),
        ("hello <think>\n\n</think>\n\n", "<think>", ""),
    ],
)
def test_a_constraint_holds_from_the_end_of_the_reasoning_on(
    models: dict[str, Loaded], prompt: str, text: str, thought: str, guesses: dict[str, Any]
) -> None:
    whole = dictated(models["thinks"], text, prompt, regex="[0-9]{2}(<t)?", **guesses)
    found, answer = split_thinking(
        ("<think>" if "hello <think>" in prompt and "</think>" not in prompt else "") + whole
    )
    assert found.strip("\n") == thought
    assert answer.removesuffix("<t").isdecimal()
    assert len(answer.removesuffix("<t")) == 2


def test_a_template_without_reasoning_begins_at_once(models: dict[str, Loaded]) -> None:
    assert dictated(models["afmoe"], "<think>aaa</think>\n99", "hello", regex="[0-9]{2}").isdecimal()


def test_tags_that_are_special_tokens_are_tokens_in_the_constraint(tmp_path: Path) -> None:
    model, tokenizer = load(tiny_folder(tmp_path / "m", template=THINKS, vocab_size=290))
    tokenizer._backend.add_special_tokens(["<think>", "</think>"])
    tags = [tokenizer.token_to_id(tag) for tag in ("<think>", "</think>")]
    for prompt in (["hello <think>", 4], ["hello", tags[0]]):
        script = iter([prompt[1], tags[1]])
        chunks = list(
            stream_generate(
                model,
                tokenizer,
                prompt[0],
                regex="x{4}",
                sampler=lambda logprobs, script=script: mx.array([next(script, None) or mx.argmax(logprobs).item()]),
            )
        )
        assert split_thinking(("<think>" if prompt[1] == 4 else "") + text_of(chunks))[1].strip() == "xxxx"


@pytest.mark.parametrize("guesses", [{}, {"prompt_lookup": 5}], ids=str)
@pytest.mark.parametrize("budget", [0, 3])
def test_a_reasoning_budget_and_a_constraint_go_together(loaded: Loaded, budget: int, guesses: dict[str, Any]) -> None:
    options = {"reasoning_budget": budget, "json_schema": SCHEMA, "max_tokens": 120, **guesses}
    chunks = list(stream_generate(*loaded, "hello to the <think>\n", **options))
    text = text_of(chunks)
    assert len(text.partition("</think>")[0].strip("\n")) <= budget
    Draft202012Validator(SCHEMA).validate(json.loads(text.partition("</think>")[2]))
    assert chunks[-1].violation is None


@pytest.mark.parametrize(("stop", "text"), [("cc", "aaaa"), ("zz", "aaaa")])
def test_a_stop_string_within_the_answer_leaves_it_incomplete(models: dict[str, Loaded], stop: str, text: str) -> None:
    chunks = list(stream_generate(*models["afmoe"], "hello", regex="aaaa(b|d)cczz", stop=[stop]))
    assert text_of(chunks).startswith(text)
    assert (chunks[-1].finish_reason, chunks[-1].violation) == ("stop", "it ends before it is complete")
