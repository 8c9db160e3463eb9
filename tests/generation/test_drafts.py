"""What is guessed: a draft model's own continuation, wherever its cache stood, and what followed the longest match."""

import json
import random
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afmoe_mlx.errors import InputError
from afmoe_mlx.generation import (
    DraftModel,
    PromptLookup,
    SamplingOptions,
    check_same_tokenizer,
    decode,
    make_logits_processors,
    make_sampler,
    prefill,
)
from afmoe_mlx.generation.loop import Chooser
from afmoe_mlx.tokenizer import Tokenizer
from helpers.drafting import OPTIONS, PROMPT
from helpers.tiny import ARCHITECTURES, tiny, tiny_folder, two_layers
from helpers.tiny_tokenizers import byte_fallback, save


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@settings(max_examples=9, deadline=None)
@given(window=st.integers(1, 9), slack=st.integers(0, 8), options=OPTIONS, seed=st.integers(0, 1000))
def test_a_draft_models_cache_follows_the_text(
    model_type: str, window: int, slack: int, options: SamplingOptions, seed: int
) -> None:
    """It proposes what it would from scratch, after rejections, after plain steps and after another text."""
    draft = two_layers(model_type, window)
    with_slack = draft.make_cache
    draft.make_cache = lambda: with_slack(slack)  # type: ignore[method-assign, assignment]
    drafter = DraftModel(draft, 4, step_size=3)
    walk = random.Random(seed)
    text = PROMPT[: walk.randint(1, len(PROMPT))]
    drafter.begin(text)
    alone = two_layers(model_type, window)
    for _ in range(6):
        choose = Chooser(make_sampler(options), make_logits_processors(options), text)
        assert drafter.is_ready()
        guesses = drafter.propose(4, choose)
        cache = alone.make_cache()
        logits = prefill(alone, text, cache, step_size=100)
        sampler, processors = make_sampler(options), make_logits_processors(options)
        steps = decode(alone, logits, cache, sampler, tokens=text, processors=processors, limit=4)
        assert guesses == [token for token, _ in steps]
        more = guesses[: walk.randint(0, 4)] + [walk.randint(0, 39)] * walk.randint(0, 5) or [2]
        if walk.random() < 0.2:
            text = text[: walk.randint(0, len(text))] + more  # another from the first token on, too
            drafter.begin(text)
        else:
            text = text + more
            drafter.extend(more)


def test_a_draft_model_whose_context_is_full_guesses_nothing() -> None:
    drafter = DraftModel(tiny(max_position_embeddings=16), 4)
    drafter.begin([1] * 12)
    assert drafter.is_ready()
    drafter.extend([1])
    assert not drafter.is_ready()


@given(
    tokens=st.lists(st.integers(0, 3), max_size=60),
    cuts=st.lists(st.integers(0, 60), max_size=3),
    count=st.integers(1, 12),
)
def test_prompt_lookup_continues_the_longest_earlier_match(tokens: list[int], cuts: list[int], count: int) -> None:
    lookup = PromptLookup()
    edges = [0, *sorted(cuts), len(tokens)]
    for start, end in pairwise(edges):
        lookup.extend(tokens[start:end])
    guesses = lookup.propose(count)
    lengths = {
        place: next(n for n in range(place + 1) if n == min(place, 16) or tokens[place - 1 - n] != tokens[-1 - n])
        for place in range(2, len(tokens))
    }
    best = max(lengths.values(), default=0)
    assert lookup.is_ready() == (best >= 3)
    if best < 2:
        assert guesses == []
        return
    text = list(tokens)
    place = max(place for place, length in lengths.items() if length == best)
    for i in range(count):
        text.append(text[place + i])
    assert guesses == text[len(tokens) :]


def test_another_tokenizer_is_refused_and_a_copy_is_not(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "ours")
    ours = Tokenizer.from_folder(folder)
    check_same_tokenizer(ours, Tokenizer.from_folder(folder))
    with pytest.raises(InputError, match=r"264 tokens.*280|knows"):
        check_same_tokenizer(ours, Tokenizer.from_folder(save(tmp_path / "other", byte_fallback())))
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["q"], vocabulary["x"] = vocabulary["x"], vocabulary["q"]
    (tmp_path / "swapped").mkdir()
    (tmp_path / "swapped" / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    with pytest.raises(InputError, match="other ids"):
        check_same_tokenizer(ours, Tokenizer.from_folder(tmp_path / "swapped"))
