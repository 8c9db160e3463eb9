"""Several sequences at once, ours and mlx-lm's BatchGenerator: `python benchmarks/batches.py [--runs N] [--only WORD]`

Greedy tokens a second while all rows decode, and bytes of keys and values then, both in float32 with the same BLAS: the
built-in model in 4 bits, and Trinity Nano's 56 layers at a hidden size of 64, ours compiled. Prompts are read before
the time is taken, and each run is a process of its own, in turns.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from functools import partial
from typing import Any, NamedTuple

WARM, STEPS = 6, 40
LONG = {"narrow": 4000, "demo": 3000}
SHORT = 50
ROWS = ("1", "4", "16", "ragged")
BARS = """bars: 16 rows >= 2.5 x one row on the demo; >= 1.3 x mlx-lm at 4 and 16 equal rows, >= 2 x ragged (one long
row beside fifteen of 50 tokens) with <= 0.4 x its bytes"""


class Result(NamedTuple):
    tokens_per_second: float
    cache_bytes: float


def prompts(model: str, rows: str, vocabulary: int) -> list[list[int]]:
    lengths = [LONG[model]] + [SHORT] * 15 if rows == "ragged" else [SHORT] * int(rows)
    return [[(7919 * i + row) % vocabulary for i in range(length)] for row, length in enumerate(lengths)]


def timed(step: Any, rows: int) -> float:
    """Tokens a second of steps that give a token a row; the lower quartile, for on a shared machine some are late."""
    for _ in range(WARM):
        assert len(step()) == rows
    taken = []
    for _ in range(STEPS):
        began = time.perf_counter()
        step()
        taken.append(time.perf_counter() - began)
    return rows / statistics.quantiles(taken)[0]


def ours(name: str, rows: str) -> Result:
    from afmoe_mlx import load_model
    from afmoe_mlx.api import DEMO
    from afmoe_mlx.generation import BatchEngine

    if name == "demo":
        model = load_model(DEMO)[0]
    else:
        from narrow import narrow_model

        model = narrow_model()
        model.compiles_decode = True
    engine = BatchEngine(model)
    asked = prompts(name, rows, model.config.vocab_size)
    for prompt in asked:
        engine.add(prompt, limit=WARM + STEPS + len(asked) + 100)
    while len(engine.step()) < len(asked):
        pass
    return Result(timed(engine.step, len(asked)), engine.nbytes)


def theirs(name: str, rows: str) -> Result:
    import mlx.core as mx
    from mlx_lm.generate import BatchGenerator
    from mlx_lm.models.cache import make_prompt_cache
    from narrow import narrow_pair

    if name == "demo":
        from mlx_lm.utils import load_model as load_theirs

        from afmoe_mlx.api import DEMO

        model: Any = load_theirs(DEMO)[0]
        model.set_dtype(mx.float32)
        mx.eval(model.parameters())
        vocabulary = model.args.vocab_size
    else:
        model = narrow_pair()[1]
        vocabulary = 1024
    caches, lasts = [], []
    generator = BatchGenerator(model, max_tokens=10_000)
    with mx.stream(generator.stream):
        for prompt in prompts(name, rows, vocabulary):
            cache = make_prompt_cache(model)
            for start in range(0, len(prompt) - 1, 512):
                model(mx.array([prompt[start : min(start + 512, len(prompt) - 1)]]), cache=cache)
                mx.eval([c.state for c in cache])
            caches.append(cache)
            lasts.append(prompt[-1:])
    generator.insert(lasts, caches=caches)
    del cache, caches
    while len(generator.next_generated()) < len(lasts):
        pass
    speed = timed(generator.next_generated, len(lasts))
    return Result(speed, generator.prompt_cache_nbytes)


KINDS = {"ours": ours, "mlx-lm": theirs}


def run(kind: str, model: str, rows: str) -> Result:
    command = [sys.executable, __file__, "--worker", kind, model, rows]
    return Result(*json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout))


def main() -> None:
    from narrow import alternated, median, paired_ratio

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", default="", help="models and rows with this word in their name")
    options = parser.parse_args()
    print(f"{BARS}\nmedians of {options.runs} runs of {STEPS} steps")
    for model in LONG:
        alone: float | None = None
        for rows in ROWS:
            if options.only not in f"{model} {rows}":
                continue
            found = alternated(options.runs, *(partial(run, kind, model, rows) for kind in KINDS))
            (speeds, held), (their_speeds, their_held) = (zip(*results, strict=True) for results in found)
            alone = alone or median(speeds)
            print(
                f"{model:7} {rows:7} {median(speeds):6.0f} tokens/s ({median(speeds) / alone:.2f} x one row)   "
                f"mlx-lm {median(their_speeds):6.0f} ({paired_ratio(speeds, their_speeds):.2f} x)   "
                f"{median(held) / 1e6:6.1f} MB ({paired_ratio(held, their_held):.2f} x)",
                flush=True,
            )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        import afmoe_mlx  # noqa: F401  (before MLX, so that MLX finds the fast BLAS, for both)

        print(json.dumps(KINDS[sys.argv[2]](*sys.argv[3:])))
    else:
        main()
