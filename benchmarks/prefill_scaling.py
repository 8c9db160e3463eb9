"""Whether a prompt's cost a token depends on its length: `python benchmarks/prefill_scaling.py [--runs N]`

A narrow model of sliding layers alone (window 256), with prompts of 2k, 8k and 32k tokens, and one with a full layer in
four, as Trinity's: time a token, and peak memory beside what the finished cache holds. mlx-lm runs the second; it has
no way to run the first.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx
from narrow import alternated, median, narrow_model, narrow_pair

from afmoe_mlx.generation import prefill

LENGTHS = (2048, 8192, 32768)
BAR = 1.15
LAYERS = 8
MIXED = (["sliding_attention"] * 3 + ["full_attention"]) * (LAYERS // 4)


class Cost(NamedTuple):
    """Of one prompt: microseconds a token, and megabytes held at most, the model and the prompt's cache left out."""

    microseconds: float
    megabytes: float


def measured(length: int, run: Callable[[list[int]], Any], cache_bytes: Callable[[], int]) -> Cost:
    """Time and memory of one prompt."""
    tokens = [(i * 7919) % 1000 for i in range(length)]
    mx.clear_cache()
    held = mx.get_active_memory()
    mx.reset_peak_memory()
    began = time.perf_counter()
    run(tokens)
    seconds = time.perf_counter() - began
    return Cost(1e6 * seconds / length, (mx.get_peak_memory() - held - cache_bytes()) / 1e6)


def ours(model: Any, length: int) -> Cost:
    cache = model.make_cache()
    run = lambda tokens: mx.eval(prefill(model, tokens, cache, step_size=512))  # noqa: E731
    return measured(length, run, lambda: cache.nbytes)


def mlx_lm(model: Any, length: int) -> Cost:
    from mlx_lm.generate import generate_step

    cache = model.make_cache()
    run = lambda tokens: next(generate_step(mx.array(tokens), model, max_tokens=1, prompt_cache=cache))  # noqa: E731
    return measured(length, run, lambda: sum(layer.nbytes for layer in cache))


def report(name: str, runs: int, cost: Callable[[int], Cost], lengths: tuple[int, ...] = LENGTHS) -> None:
    results = alternated(runs, *(lambda n=n: cost(n) for n in lengths))  # type: ignore[misc]
    ratio = median([b.microseconds / a.microseconds for a, b in zip(results[0], results[-1], strict=True)])
    cells = []
    for n, costs in zip(lengths, results, strict=True):
        time_, memory = (median([getattr(cost, field) for cost in costs]) for field in Cost._fields)
        cells.append(f"{n // 1024}k: {time_:7.0f} us {memory:7.1f} MB")
    print(f"{name:28} {'   '.join(cells)}   {lengths[-1] // 1024}k / {lengths[0] // 1024}k: {ratio:.2f} x", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    print(f"a prompt's token ({mx.default_device()}), {LAYERS} layers, medians of {options.runs}; the bar: {BAR} x")
    sliding = narrow_model(num_hidden_layers=LAYERS, layer_types=["sliding_attention"] * LAYERS)
    report("ours, all sliding", options.runs, lambda n: ours(sliding, n))
    model, theirs = narrow_pair(num_hidden_layers=LAYERS, layer_types=MIXED)
    report("ours, a full one in four", options.runs, lambda n: ours(model, n), LENGTHS[:2])
    report("mlx-lm, a full one in four", options.runs, lambda n: mlx_lm(theirs, n), LENGTHS[:2])


if __name__ == "__main__":
    main()
