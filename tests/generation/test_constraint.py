"""A constraint lets through what its grammar allows and no more, whatever is drawn."""

import json
import random
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from afmoe_mlx.errors import InputError, TokenizerError
from afmoe_mlx.generation import ConstraintOptions
from afmoe_mlx.generation.constraint import Constraint
from afmoe_mlx.tokenizer import Tokenizer
from helpers.tiny_tokenizers import byte_fallback, byte_level, metaspace

VOCAB = 300  # twenty more than the tokenizer has

SCALARS = st.sampled_from(
    [
        {"type": "integer", "minimum": -3, "maximum": 120},
        {"type": "string", "maxLength": 3},
        {"type": "string", "pattern": "^[a-c]{1,3}$"},
        {"type": "string", "format": "date"},
        {"type": ["boolean", "null"]},
        {"enum": ["été", 'a "b"', 7, None]},
        {"const": {"not": [1]}},
    ]
)


def compound(parts: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    names = st.sampled_from(["a", "größe", 'k"ey', "not"])
    properties = st.dictionaries(names, parts, min_size=1, max_size=3)
    objects = st.builds(
        lambda found, count: {
            "type": "object",
            "properties": found,
            "required": list(found)[:count],
            "additionalProperties": False,
        },
        properties,
        st.integers(0, 3),
    )
    arrays = st.builds(
        lambda part, least: {"type": "array", "items": part, "minItems": least, "maxItems": 2}, parts, st.integers(0, 2)
    )
    return st.one_of(objects, arrays, st.lists(parts, min_size=1, max_size=2).map(lambda found: {"anyOf": found}))


SCHEMAS = st.recursive(SCALARS, compound, max_leaves=4)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    backend = byte_level()
    return Tokenizer(backend, eos_token_ids=[backend.token_to_id("<|im_end|>")])


def constraint(tokenizer: Tokenizer, **options: Any) -> Constraint:
    return ConstraintOptions(**options).begin(tokenizer, VOCAB, [])()


def allowed(held: Constraint) -> list[int]:
    return [token for token, may in enumerate(held.mask().tolist()) if may]  # type: ignore[arg-type]


def written(held: Constraint, chance: random.Random, most: int = 400) -> list[int]:
    """Tokens drawn at random of those that may come, up to the end or so many."""
    tokens: list[int] = []
    while len(tokens) < most:
        found = held.forced()
        assert len(found) != 1 or allowed(held) == found
        found = found or [chance.choice(allowed(held))]
        for token in found:
            held.advance(token)
        tokens += found
        if tokens[-1] in {*range(4)}:  # the special tokens, of which one ends an answer
            break
    return tokens


@settings(max_examples=80, deadline=None)
@given(schema=SCHEMAS, seed=st.integers(0, 9))
def test_whatever_is_drawn_satisfies_the_schema(tokenizer: Tokenizer, schema: dict[str, Any], seed: int) -> None:
    tokens = written(constraint(tokenizer, json_schema=schema), random.Random(seed))
    assert tokens[-1] in tokenizer.eos_token_ids
    Draft202012Validator(schema).validate(json.loads(tokenizer.decode(tokens[:-1])))


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 99), turn=st.integers(0, 12))
def test_a_copy_goes_on_by_itself(tokenizer: Tokenizer, seed: int, turn: int) -> None:
    held = constraint(tokenizer, regex="(ab|[x-z]{2}|hello world){3,9}")
    written(held, random.Random(seed), most=turn)
    before = allowed(held)
    first = written(held.copy(), random.Random(seed))
    assert allowed(held) == before
    assert written(held.copy(), random.Random(seed)) == first
    assert held.count <= turn + len("hello world")


def test_what_must_come_comes_as_the_tokenizer_cuts_it(tokenizer: Tokenizer) -> None:
    held = constraint(tokenizer, grammar='start: "hello to the world" / [a-z]+/')
    forced = held.forced()
    whole = tokenizer.encode("hello to the world hello")
    assert len(forced) >= 3
    assert forced == whole[: len(forced)]
    assert held.forced() == forced


def test_the_end_may_come_where_the_grammar_is_satisfied_and_there_alone(tokenizer: Tokenizer) -> None:
    (end,) = tokenizer.eos_token_ids
    held = constraint(tokenizer, regex="a{2,3}")
    seen = []
    for token in tokenizer.encode("a") * 3:
        seen.append((held.is_complete, end in allowed(held), held.copy().accepts(end)))
        held.advance(token)
    assert seen == [(False,) * 3, (False,) * 3, (True,) * 3]
    assert held.is_finished
    assert held.forced() == allowed(held) == [end]
    held.advance(end)
    assert held.is_complete


def test_the_models_rows_without_a_token_are_never_allowed(tokenizer: Tokenizer) -> None:
    mask = constraint(tokenizer, regex="(?s:.*)").mask()
    assert mask.shape == (VOCAB,)
    assert mask.dtype == mx.bool_
    assert not mask[tokenizer.vocab_size :].any().item()
    assert mask[4 : tokenizer.vocab_size].sum().item() > 150


def test_a_token_that_is_forbidden_is_refused_and_nothing_changes(tokenizer: Tokenizer) -> None:
    held = constraint(tokenizer, regex="[0-9]+")
    before = allowed(held)
    (letter,) = tokenizer.encode("a")
    assert not held.accepts(letter)
    with pytest.raises(InputError, match=f"token {letter} was chosen"):
        held.advance(letter)
    assert (allowed(held), held.count) == (before, 0)


def test_the_librarys_tokenizer_is_made_once(tokenizer: Tokenizer) -> None:
    first = tokenizer.guidance(VOCAB)
    assert tokenizer.guidance(VOCAB) is first
    assert tokenizer.with_chat_template("x").guidance(VOCAB) is first
    other = tokenizer.with_extra_eos(["</s>"])
    assert other.guidance(VOCAB) is not first
    held = Constraint(
        other.guidance(VOCAB), ConstraintOptions(regex="a").grammar_for(other, first, opened=False, may_think=False)
    )
    held.advance(other.encode("a")[0])
    assert held.forced() == []
    assert set(allowed(held)) == other.eos_token_ids


def test_byte_fallback_is_taken_and_what_the_library_cannot_spell_is_a_line() -> None:
    held = constraint(Tokenizer(byte_fallback(), eos_token_ids=[2]), regex="aé")
    assert len(written(held, random.Random(0))) == 4
    with pytest.raises(TokenizerError, match="answers of this model cannot be constrained: "):
        constraint(Tokenizer(metaspace(), eos_token_ids=[0]), regex="a")
    with pytest.raises(TokenizerError, match="needs a token that ends it"):
        constraint(Tokenizer(byte_level()), regex="a")


def test_a_grammar_that_grows_beyond_bounds_is_a_line(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="the constraint cannot be followed: "):
        written(constraint(tokenizer, grammar='start: <|nothing|> "a"'), random.Random(0))


@settings(max_examples=30, deadline=None)
@given(schema=SCHEMAS, seed=st.integers(0, 9), turn=st.integers(0, 30))
def test_an_answer_is_brought_to_its_end_where_its_limit_is_near(
    tokenizer: Tokenizer, schema: dict[str, Any], seed: int, turn: int
) -> None:
    (end,) = tokenizer.eos_token_ids
    held = constraint(tokenizer, json_schema=schema)
    tokens = written(held, random.Random(seed), most=turn)
    while tokens[-1:] != [end]:
        found = held.forced(len(held._short_end(999))) or [end]
        for token in found:
            held.advance(token)
        tokens += found
    Draft202012Validator(schema).validate(json.loads(tokenizer.decode(tokens[:-1])))


@pytest.mark.parametrize("limit", [40, 90])
def test_an_answer_without_end_ends_within_its_limit_and_not_much_sooner(tokenizer: Tokenizer, limit: int) -> None:
    part = {"type": "array", "items": {"type": "string"}}
    held = constraint(tokenizer, json_schema={"type": "object", "properties": {"a": part}, "required": ["a"]})
    (letter,), tokens = tokenizer.encode("x"), list[int]()
    while not held.is_finished:
        found = held.forced(limit - len(tokens)) or [letter if held.copy().accepts(letter) else allowed(held)[0]]
        for token in found:
            held.advance(token)
        tokens += found
    assert held.is_cut
    assert limit - 20 < len(tokens) < limit
    assert "x" * (limit // 3) in json.loads(tokenizer.decode(tokens))["a"][0]
