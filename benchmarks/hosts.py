"""Prompts read and tokens written by a model on two processes, against the same model in one.

    python benchmarks/hosts.py [--layers 12] [--bits 4] [--tokens 1024] [--runs 3]

Random weights as wide as Trinity Nano's. Both take turns, each process with one BLAS thread; ratios are of medians.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before MLX: a process a core

import json
import random
import sys
import tempfile
import time
from argparse import ArgumentParser
from pathlib import Path
from statistics import median

import mlx.core as mx

from afmoe_mlx.checkpoint import load_model
from afmoe_mlx.checkpoint.random import save_random
from afmoe_mlx.generation import SamplingOptions, decode, make_sampler, prefill
from afmoe_mlx.hosts.start import load_on_hosts
from afmoe_mlx.models import CausalLM
from afmoe_mlx.models.shapes import shape

ENTRY = {"ssh": "localhost", "ips": ["127.0.0.1"]}


def speeds(model: CausalLM, prompt: list[int], steps: int, step_size: int) -> tuple[float, float]:
    """Tokens a second of a prompt and of an answer to it."""
    cache = model.make_cache()
    began = time.perf_counter()
    logits = prefill(model, prompt, cache, step_size=step_size)
    mx.eval(logits)
    read = time.perf_counter()
    for _ in decode(model, logits, cache, make_sampler(SamplingOptions()), limit=steps):
        pass
    return len(prompt) / (read - began), steps / (time.perf_counter() - read)


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--step-size", type=int, default=128)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--hosts", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = save_random(Path(folder, "model"), shape("trinity-nano", layers=arguments.layers), bits=arguments.bits)
        hosts = Path(folder, "hosts.json")
        hosts.write_text(json.dumps([ENTRY] * arguments.hosts))
        one, config = load_model(path)
        several, _ = load_on_hosts(path, hosts)
        prompt = random.Random(0).choices(range(config.vocab_size), k=arguments.tokens)
        found: dict[str, list[tuple[float, float]]] = {"one": [], "several": []}
        for _ in range(arguments.runs):
            for name, model in (("one", one), ("several", several)):
                found[name].append(speeds(model, prompt, arguments.steps, arguments.step_size))
                print(name, *(f"{speed:.2f}" for speed in found[name][-1]), file=sys.stderr)
        hop = several.beyond.probe("hop") / arguments.hosts  # type: ignore[union-attr]
        total = several.beyond.probe("sum")  # type: ignore[union-attr]
    print(f"| tokens a second | one process | {arguments.hosts} processes | ratio |\n|---|---|---|---|")
    for i, what in enumerate(("prompt", "answer")):
        a, b = (median(speed[i] for speed in found[name]) for name in ("one", "several"))
        print(f"| {what} | {a:.2f} | {b:.2f} | **{b / a:.2f}** |")
    print(f"\na hop {hop * 1e6:.0f} µs, a sum {total * 1e6:.0f} µs, of 8 kB")


if __name__ == "__main__":
    main()
