"""Answers held to JSON schemas: `python benchmarks/structured.py [--schemas N]`

The demo, which never saw JSON, answers under 200 schemas of its own (`schemas.py`): how many are complete within 400
tokens, and whether all that are satisfy their schema, by the package jsonschema. Then what a token costs beside one
that is not constrained, in turns; and how long the first mask of a schema takes, with the demo's vocabulary and one of
200,192 tokens that is made here, once the library has its tokenizer.
"""

import argparse
import json
import random
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import afmoe_mlx  # before MLX, so that MLX finds the fast BLAS

# isort: split
import mlx.core as mx
import tokenizers
from jsonschema import FormatChecker, validators
from narrow import median
from schemas import make_schemas

from afmoe_mlx.generation.constraint import Constraint
from afmoe_mlx.generation.grammar import ConstraintOptions
from afmoe_mlx.models import CausalLM
from afmoe_mlx.tokenizer import Tokenizer

LIMIT = 400
FINISHED_BAR, TIME_BAR, FIRST_MASK_BAR = 0.9, 1.15, 0.050
TOKENS = 200_192
QUESTION = "What is a mixture of experts? Answer in JSON."


def prompt_of(tokenizer: Tokenizer, question: str = QUESTION) -> list[int]:
    return tokenizer.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True)


class Held(NamedTuple):
    """Of so many answers, how many were complete, brought to their end by the limit, valid, and of valid formats."""

    complete: int
    ended: int
    valid: int
    exact: int


def schemas_held(model: CausalLM, tokenizer: Tokenizer, count: int, **options: Any) -> Held:
    prompt, found = prompt_of(tokenizer), list[tuple[bool, ...]]()
    for kind, schema in make_schemas(count):
        chunks = list(
            afmoe_mlx.stream_generate(model, tokenizer, prompt, json_schema=schema, max_tokens=LIMIT, **options)
        )
        text = "".join(chunk.text for chunk in chunks)
        try:
            value = json.loads(text)
        except ValueError:
            print(f"cut off ({kind}): {json.dumps(schema)}\n  {text[-160:]!r}")
            continue
        validator = validators.validator_for(schema)
        valid, exact = (
            validator(schema, format_checker=checker).is_valid(value) for checker in (None, FormatChecker())
        )
        found.append((True, chunks[-1].finish_reason == "length", valid, exact))
        if not valid:
            print(f"invalid ({kind}): {json.dumps(schema)}\n  {text}")
    return Held(*map(sum, zip(*found, strict=True)))


def time_ratio(model: CausalLM, tokenizer: Tokenizer, rounds: int) -> tuple[float, float]:
    """Seconds a token of an answer under a constraint that forces nothing, beside one without, and their ratio."""
    prompt = prompt_of(tokenizer)
    schema = {"type": "array", "items": {"type": "string", "minLength": 500}, "minItems": 1}
    ratios, held = [], []
    for _ in range(rounds):
        plain, constrained = (seconds_a_token(model, tokenizer, prompt, json_schema=s) for s in (None, schema))
        ratios.append(constrained / plain)
        held.append(constrained)
    return median(held), median(ratios)


def seconds_a_token(model: CausalLM, tokenizer: Tokenizer, prompt: Sequence[int], **options: Any) -> float:
    ends = tokenizer.eos_token_ids
    bias = {token: float("-inf") for token in ends} if options["json_schema"] is None else None
    chunks = afmoe_mlx.stream_generate(model, tokenizer, prompt, max_tokens=150, logit_bias=bias, **options)
    for _ in range(20):
        next(chunks)
    began = time.perf_counter()
    count = sum(1 for _ in chunks)
    return (time.perf_counter() - began) / count


def wide_tokenizer() -> Tokenizer:
    """The demo's tokenizer with merges at random, up to as many tokens as Trinity's."""
    _, demo = afmoe_mlx.load("demo")
    value, chance = json.loads(demo._backend.to_str()), random.Random(0)
    vocab, merges = value["model"]["vocab"], value["model"]["merges"]
    pieces = [piece for piece in vocab if not piece.startswith("<|")]
    while len(vocab) < TOKENS:
        first, second = chance.choice(pieces), chance.choice(pieces)
        whole = first + second
        if whole not in vocab and len(whole) <= 14 and not second.startswith("Ġ") and not any(map(str.isdigit, whole)):
            vocab[whole] = len(vocab)
            merges.append([first, second])
            pieces.append(whole)
    return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(value)), eos_token_ids=demo.eos_token_ids)


def first_masks(tokenizer: Tokenizer, vocab_size: int) -> tuple[float, list[float]]:
    """Seconds that the library's tokenizer takes, and from a schema that has been checked to its first mask."""
    began = time.perf_counter()
    guidance = tokenizer.guidance(vocab_size)
    _ = guidance.tokenizer
    made, found = time.perf_counter() - began, []
    for _, schema in make_schemas(200):
        options = ConstraintOptions(json_schema=schema)
        began = time.perf_counter()
        constraint = Constraint(guidance, options.grammar_for(tokenizer, guidance, opened=False, may_think=False))
        mx.eval(constraint.mask())
        found.append(time.perf_counter() - began)
    return made, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schemas", type=int, default=200, help="How many.")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    model, tokenizer = afmoe_mlx.load("demo")
    if arguments.schemas:
        held = schemas_held(model, tokenizer, arguments.schemas)
        print(f"complete within {LIMIT} tokens: {held.complete} of {arguments.schemas} (bar {FINISHED_BAR:.0%})")
        print(f"  of these brought to their end because the limit was near: {held.ended}")
        print(
            f"satisfy their schema: {held.valid} (bar: all that are complete); its formats too, to Python: {held.exact}"
        )
    seconds, ratio = time_ratio(model, tokenizer, arguments.rounds)
    print(f"a token: {seconds * 1e3:.2f} ms, {ratio:.2f} x without a constraint (bar {TIME_BAR})")
    for name, wide, size in (("demo", tokenizer, model.config.vocab_size), ("wide", wide_tokenizer(), TOKENS)):
        made, found = first_masks(wide, size)
        print(
            f"{name}, {size:,} tokens: tokenizer {made:.2f} s; first mask {median(found) * 1e3:.1f} ms, "
            f"most {max(found) * 1e3:.1f} ms (bar {FIRST_MASK_BAR * 1e3:.0f})"
        )


if __name__ == "__main__":
    main()
