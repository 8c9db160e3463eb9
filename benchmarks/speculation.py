"""Prompt lookup against plain decoding: `python benchmarks/speculation.py [--runs N]`

The demo answers questions that it was asked before, and ones that it was not. It is too small to edit or to repeat
what it does not know, so for such answers its sampler, and a narrow random model's, is told what to say: which guesses
are right depends on the text alone, and the costs are the models' own. Steps per token, and time as a ratio of rounds
in turn. Bars: 0.5 steps per token where there is something to copy, 1.05 times the plain time on prose.
"""

import argparse
import copy
import inspect
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
from narrow import alternated, median, narrow_config, narrow_model, paired_ratio

from afmoe_mlx import load, stream_generate
from afmoe_mlx.models import CausalLM
from afmoe_mlx.tokenizer import Tokenizer

ROOT = Path(__file__).parents[1]
TOKENS = 256
ASKED = ["What is a mixture of experts?", "How do I convert a model?", "What is the size of Trinity Mini in 4 bits?"]
STEPS_BAR, TIME_BAR = 0.5, 1.05


class Case(NamedTuple):
    """Prompts, and what the model is told to say to each, if anything."""

    name: str
    model: CausalLM
    tokenizer: Tokenizer
    prompts: Sequence[Sequence[int]]
    told: Sequence[int] | None = None
    copies: bool = True


class Result(NamedTuple):
    seconds: float
    tokens: int
    drafted: int
    accepted: int
    saved: int


def run(case: Case, **options: Any) -> Result:
    """Answer all prompts; seconds after the first token of each."""
    totals = Result(0.0, 0, 0, 0, 0)
    for prompt in case.prompts:
        limit = TOKENS
        if case.told is not None:
            limit = min(limit, len(case.told))
            options["sampler"] = saying(case.told)
        chunks = stream_generate(
            case.model, case.tokenizer, prompt, max_tokens=limit, temperature=0, prefill_step_size=64, **options
        )
        last = next(chunks)
        began = time.perf_counter()
        for chunk in chunks:
            last = chunk
        seconds = time.perf_counter() - began
        new = (seconds, last.generation_tokens, last.drafted_tokens, last.accepted_tokens, last.saved_steps)
        totals = Result(*(a + b for a, b in zip(totals, new, strict=True)))
    return totals


def saying(told: Sequence[int]) -> Callable[[mx.array], mx.array]:
    """A sampler that draws what it is told, at the cost of a greedy one."""
    tokens = iter(told)
    return lambda logprobs: mx.where(mx.argmax(logprobs, axis=-1) >= 0, next(tokens), 0)


def cases() -> Iterator[Case]:
    model, tokenizer = load("demo")
    endless = copy.copy(tokenizer)
    endless.eos_token_ids = frozenset()
    again = []
    for question in ASKED:
        first = [{"role": "user", "content": question}]
        answer = "".join(c.text for c in stream_generate(model, tokenizer, tokenizer.apply_chat_template(first)))
        again.append(tokenizer.apply_chat_template([*first, {"role": "assistant", "content": answer}, *first]))
    yield Case("demo: asked again", model, tokenizer, again)
    code = textwrap.dedent(inspect.getsource(textwrap.TextWrapper._wrap_chunks))
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    edited_code = code.replace("cur_line", "line").replace("chunks", "pieces")
    edited_text = text.replace("test", "check").replace("change", "patch")
    for name, source, target in (
        ("demo, told: repeat this code", code, code),
        ("demo, told: rename in this code", code, edited_code),
        ("demo, told: edit this text", text, edited_text),
    ):
        yield Case(name, model, endless, [tokenizer.encode(source)], tokenizer.encode(target))
    layers = narrow_config()["layer_types"][:8]
    narrow = narrow_model(num_hidden_layers=8, layer_types=layers, vocab_size=model.config.vocab_size)
    yield Case("narrow, told: repeat this code", narrow, endless, [tokenizer.encode(code)], tokenizer.encode(code))
    fresh = [tokenizer.apply_chat_template([{"role": "user", "content": question}]) for question in ASKED]
    yield Case("demo: asked once", model, tokenizer, fresh, copies=False)
    yield Case("demo, told: prose", model, endless, fresh[:1], tokenizer.encode(text), copies=False)
    yield Case("narrow, told: prose", narrow, endless, fresh[:1], tokenizer.encode(text), copies=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--prompt-lookup", type=int, default=8)
    options = parser.parse_args()
    print("| | tokens | drafted | accepted | steps per token | time, of plain |")
    print("|---|---|---|---|---|---|")
    for case in cases():
        ways = partial(run, case), partial(run, case, prompt_lookup=options.prompt_lookup)
        ways[1]()  # kernels warm
        plain, ahead = alternated(options.runs, *ways)
        ratio = paired_ratio([r.seconds for r in ahead], [r.seconds for r in plain])
        tokens, drafted, accepted = (median([r[i] for r in ahead]) for i in (1, 2, 3))
        steps = median([(r.tokens - r.saved) / r.tokens for r in ahead])
        missed = steps > STEPS_BAR if case.copies else ratio > TIME_BAR
        row = f"| {case.name} | {tokens} | {drafted} | {accepted} | {steps:.2f} | {ratio:.2f} |"
        print(row + (" missed" if missed else ""), flush=True)


if __name__ == "__main__":
    main()
