"""Prompt lookup and a draft model against plain decoding: `python benchmarks/speculation.py [--runs N]`

The demo answers questions that it was asked before, and ones that it was not. It is too small to edit or to repeat
what it does not know, so for such answers its sampler, and a narrow random model's, is told what to say: which guesses
are right depends on the text alone, and the costs are the models' own. Steps per token, and time as a ratio, medians
of rounds in which both ways take turns every 32 tokens. Bars: 0.5 steps per token where there is something to copy,
1.05 times the plain time on prose. In the last row the demo in 4 bits drafts for its own original, which is no smaller:
where drafting cannot pay, it should not cost.
"""

import argparse
import copy
import inspect
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import afmoe_mlx  # before MLX, so that MLX finds the fast BLAS

# isort: split
import mlx.core as mx
from narrow import median, narrow_config, narrow_model, paired_ratio

from afmoe_mlx.models import CausalLM
from afmoe_mlx.tokenizer import Tokenizer

ROOT = Path(__file__).parents[1]
TOKENS = 256
STRETCH = 32
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
    draft_model: CausalLM | None = None


class Result(NamedTuple):
    seconds: float
    tokens: int
    drafted: int
    accepted: int
    saved: int


class Answering:
    """One answer under way, timed after its first token."""

    def __init__(self, case: Case, prompt: Sequence[int], **options: Any) -> None:
        limit = TOKENS
        if case.told is not None:
            limit = min(limit, len(case.told))
            options["sampler"] = saying(case.told)
        self._chunks = afmoe_mlx.stream_generate(
            case.model, case.tokenizer, prompt, max_tokens=limit, temperature=0, prefill_step_size=64, **options
        )
        self._last = next(self._chunks)
        self._seconds = 0.0

    def go_on(self) -> bool:
        """Answer some tokens more; whether there may be others."""
        began = time.perf_counter()
        stretch = list(islice(self._chunks, STRETCH))
        mx.synchronize()
        self._seconds += time.perf_counter() - began
        self._last = (stretch or [self._last])[-1]
        return len(stretch) == STRETCH

    def result(self) -> Result:
        last = self._last
        return Result(
            self._seconds, last.generation_tokens, last.drafted_tokens, last.accepted_tokens, last.saved_steps
        )


def run(case: Case, *ways: dict[str, Any]) -> list[Result]:
    """Answer all prompts in several ways, which take turns after every stretch; each way's totals."""
    totals = [Result(0.0, 0, 0, 0, 0) for _ in ways]
    for prompt in case.prompts:
        answers = [Answering(case, prompt, **options) for options in ways]
        left = list(answers)
        while left:
            left = [answer for answer in left if answer.go_on()]
        results = [answer.result() for answer in answers]
        totals = [Result(*map(sum, zip(*pair, strict=True))) for pair in zip(totals, results, strict=True)]
    return totals


def saying(told: Sequence[int]) -> Callable[[mx.array], mx.array]:
    """A sampler that draws what it is told, at the cost of a greedy one."""
    tokens = iter(told)
    return lambda logprobs: mx.where(mx.argmax(logprobs, axis=-1) >= 0, next(tokens), 0)


def cases() -> Iterator[Case]:
    model, tokenizer = afmoe_mlx.load("demo")
    endless = copy.copy(tokenizer)
    endless.eos_token_ids = frozenset()
    again = []
    for question in ASKED:
        first = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(first, add_generation_prompt=True)
        answer = "".join(chunk.text for chunk in afmoe_mlx.stream_generate(model, tokenizer, prompt))
        twice = [*first, {"role": "assistant", "content": answer}, *first]
        again.append(tokenizer.apply_chat_template(twice, add_generation_prompt=True))
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
    questions = [[{"role": "user", "content": question}] for question in ASKED]
    fresh = [tokenizer.apply_chat_template(question, add_generation_prompt=True) for question in questions]
    yield Case("demo: asked once", model, tokenizer, fresh, copies=False)
    yield Case("demo, told: prose", model, endless, fresh[:1], tokenizer.encode(text), copies=False)
    yield Case("narrow, told: prose", narrow, endless, fresh[:1], tokenizer.encode(text), copies=False)
    original, _ = afmoe_mlx.load(str(ROOT / "benchmarks" / "demo-bf16"))
    yield Case("demo drafts for its original", original, endless, fresh[:1], copies=False, draft_model=model)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--prompt-lookup", type=int, default=8)
    options = parser.parse_args()
    print("| | tokens | drafted | accepted | steps per token | time, of plain |")
    print("|---|---|---|---|---|---|")
    for case in cases():
        guess = {"draft_model": case.draft_model} if case.draft_model else {"prompt_lookup": options.prompt_lookup}
        run(case, guess)  # kernels warm
        rounds = []
        for i in range(options.runs):
            ways = ({}, guess)[:: 1 if i % 2 else -1]
            rounds.append(run(case, *ways)[:: 1 if i % 2 else -1])
        plain, ahead = zip(*rounds, strict=True)
        ratio = paired_ratio([r.seconds for r in ahead], [r.seconds for r in plain])
        tokens, drafted, accepted = (median([r[i] for r in ahead]) for i in (1, 2, 3))
        steps = median([(r.tokens - r.saved) / r.tokens for r in ahead])
        missed = steps > STEPS_BAR if case.copies else ratio > TIME_BAR
        row = f"| {case.name} | {tokens} | {drafted} | {accepted} | {steps:.2f} | {ratio:.2f} |"
        print(row + (" missed" if missed else ""), flush=True)


if __name__ == "__main__":
    main()
