"""A reasoning budget closes a thought where it is used up; what is before and after is as without it."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from afmoe_mlx import generate, load, stream_generate
from afmoe_mlx.cache import PrefixStore
from afmoe_mlx.errors import InputError
from afmoe_mlx.generation import GenerationChunk
from helpers.drafting import Always
from helpers.stores import check
from helpers.tiny import ARCHITECTURES, tiny_folder

Loaded = tuple[Any, Any]
OPENED = "hello to the world <think>\n"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Loaded]:
    found = {name: load(tiny_folder(tmp_path_factory.mktemp("model") / "m", name)) for name in ARCHITECTURES}
    for _, tokenizer in found.values():
        tokenizer.eos_token_ids = frozenset()
    return found


@pytest.fixture(params=ARCHITECTURES)
def loaded(request: pytest.FixtureRequest, models: dict[str, Loaded]) -> Loaded:
    return models[request.param]


def tokens_of(chunks: Any) -> list[int]:
    return [chunk.token for chunk in chunks]


def written(loaded: Loaded, text: str, **options: Any) -> list[GenerationChunk]:
    """What becomes of an answer of a model that writes `text`, a character a token, then Z for ever."""
    model, tokenizer = loaded
    prompt = tokenizer.encode("hello")
    script = [token for character in text.ljust(99, "Z") for token in tokenizer.encode(character)]

    def dictate(tokens: mx.array, logits: mx.array) -> mx.array:
        return mx.where(mx.arange(logits.shape[-1]) == script[tokens.size - len(prompt)], 1e9, logits)

    return list(stream_generate(model, tokenizer, prompt, logits_processors=[dictate], **options))


@pytest.mark.parametrize("budget", [0, 1, 7])
def test_a_thought_is_closed_where_its_budget_ends_and_the_answer_is_that_of_the_closed_thought(
    loaded: Loaded, budget: int
) -> None:
    tokenizer = loaded[1]
    prompt = tokenizer.encode(OPENED)
    thought = tokens_of(stream_generate(*loaded, prompt, max_tokens=budget)) if budget else []
    chunks = list(stream_generate(*loaded, prompt, max_tokens=25, reasoning_budget=budget))
    answer = tokens_of(chunks)
    assert answer[:budget] == thought
    text = "".join(chunk.text for chunk in chunks)
    end = text.index("</think>\n\n") + len("</think>\n\n")
    closing = tokenizer.encode("</think>\n\n" if budget == 0 else "\n</think>\n\n")
    before = [*thought, *closing]
    assert answer[: len(before)] == before
    rest = tokens_of(stream_generate(*loaded, [*prompt, *before], max_tokens=25 - len(before)))
    assert answer[len(before) :] == rest
    assert text[end:] == tokenizer.decode(rest)
    assert [chunk.finish_reason for chunk in chunks] == [None] * 24 + ["length"]
    assert [chunk.generation_tokens for chunk in chunks] == list(range(1, 26))


@pytest.mark.parametrize("prompt", ["hello", "<think>\nwhy</think>"])
def test_an_answer_that_does_not_reason_is_left_as_it_is(loaded: Loaded, prompt: str) -> None:
    plain = generate(*loaded, prompt, max_tokens=20)
    assert [generate(*loaded, prompt, max_tokens=20, reasoning_budget=n) for n in (0, 3, 19, 50)] == [plain] * 4


@pytest.mark.parametrize(
    ("text", "budget", "closing"),
    [
        ("<think>aa", 2, "\n</think>\n\n"),
        (" <think>aab", 3, "\n</think>\n\n"),
        ("<think>", 0, "\n</think>\n\n"),
        ("<think>aa\n", 3, "</think>\n\n"),
        ("<think>aa</th", 6, "ink>\n\n"),
        ("<think>aa</think", 9, ">\n\n"),
        ("<think>aa</think>bbb", 10, ""),
        ("<think>aa</think>bbb", 12, ""),
        ("no <think>aabb", 2, ""),
        ("<thin aabb", 0, ""),
    ],
)
def test_the_models_own_tags_are_counted_and_completed_wherever_they_are_cut(
    models: dict[str, Loaded], text: str, budget: int, closing: str
) -> None:
    chunks = written(models["afmoe"], text, max_tokens=35, reasoning_budget=budget)
    answer = "".join(chunk.text for chunk in chunks)
    assert answer == (text + closing).ljust(35, "Z")


@pytest.mark.parametrize("guesses", ["draft_model", "prompt_lookup"])
@pytest.mark.parametrize(("temperature", "penalty"), [(0.0, 3.0), (0.7, 1.0), (1.2, 3.0)])
def test_guessing_ahead_does_not_change_what_a_budget_gives(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch, guesses: str, temperature: float, penalty: float
) -> None:
    monkeypatch.setattr("afmoe_mlx.generation.speculate.Pace", Always)
    options = {"max_tokens": 24, "reasoning_budget": 6, "seed": 5, "temperature": temperature}
    options["repetition_penalty"] = penalty
    guess = {guesses: loaded[0] if guesses == "draft_model" else 5}
    plain = list(stream_generate(*loaded, OPENED, **options))
    guessed = list(stream_generate(*loaded, OPENED, **guess, **options))
    assert tokens_of(guessed) == tokens_of(plain)
    assert guessed[-1].drafted_tokens > 0 or guesses == "prompt_lookup"
    assert guessed[-1].saved_steps <= guessed[-1].accepted_tokens


def test_tags_that_are_special_tokens_are_closed_by_theirs(tmp_path: Path) -> None:
    model, tokenizer = load(tiny_folder(tmp_path / "m", vocab_size=290))
    tokenizer._backend.add_special_tokens(["<think>", "</think>"])
    tag = tokenizer.token_to_id("</think>")
    prompt = [*tokenizer.encode("hello"), tokenizer.token_to_id("<think>"), *tokenizer.encode("\n")]
    answer = tokens_of(stream_generate(model, tokenizer, prompt, max_tokens=9, reasoning_budget=3))
    newline = tokenizer.encode("\n")
    assert answer[3:7] == [*newline, tag, *newline, *newline]


@pytest.mark.parametrize("taken", [3, 6, 7, 20])
@pytest.mark.parametrize("options", [{}, {"prompt_lookup": 4}], ids=["plain", "speculative"])
def test_the_caches_hold_what_was_written_wherever_the_answer_is_left(
    loaded: Loaded, taken: int, options: dict[str, Any]
) -> None:
    model, tokenizer = loaded
    prompt, cache = tokenizer.encode(OPENED), model.make_cache()
    store = PrefixStore(model, block_size=4)
    chunks = stream_generate(*loaded, prompt, reasoning_budget=5, cache=cache, store=store, max_tokens=30, **options)
    answer = [next(chunks).token for _ in range(taken)]
    chunks.close()  # type: ignore[attr-defined]
    sequence = [*prompt, *answer]
    assert len(sequence) - 1 <= cache.offset <= len(sequence)
    assert check(store, sequence) == (len(sequence) - 1) // 4 * 4
    rest = [*sequence[cache.offset :], 9]
    assert tokens_of(stream_generate(*loaded, rest, cache=cache, max_tokens=6)) == tokens_of(
        stream_generate(*loaded, [*sequence, 9], max_tokens=6)
    )


@pytest.mark.parametrize("limit", [1, 5, 6, 8])
def test_the_limit_of_tokens_holds_within_the_closing_too(loaded: Loaded, limit: int) -> None:
    chunks = list(stream_generate(*loaded, OPENED, reasoning_budget=5, max_tokens=limit))
    assert (len(chunks), chunks[-1].finish_reason) == (limit, "length")
    whole = tokens_of(stream_generate(*loaded, OPENED, reasoning_budget=5, max_tokens=30))
    assert tokens_of(chunks) == whole[:limit]


@pytest.mark.parametrize("budget", [-1, 1.5, True, "5"])
def test_a_budget_that_makes_no_sense_is_refused(models: dict[str, Loaded], budget: Any) -> None:
    with pytest.raises(InputError, match=r"reasoning_budget is .*: expected an integer, 0 or more"):
        stream_generate(*models["afmoe"], OPENED, reasoning_budget=budget)
