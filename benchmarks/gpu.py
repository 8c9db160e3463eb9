"""Ours and mlx-lm on a GPU, Metal's or CUDA's, at the published shapes: `python benchmarks/gpu.py [--shapes NAME …]`

Random weights of Trinity Nano's and Mini's shapes, in 4 bits and in bfloat16, the same for both: a prompt and the
tokens after it, memory, the share of the memory's bandwidth that decoding reaches, and operations a layer of a step.
Each run is a process of its own, in turns. It runs on a CPU too, where `--layers 4` keeps it short.
"""

import argparse
import json
import subprocess
import sys
import time
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from narrow import alternated, median, paired_ratio
from operations import operations

from afmoe_mlx import device
from afmoe_mlx.checkpoint.random import random_model
from afmoe_mlx.commands.bench import bytes_per_token
from afmoe_mlx.generation import SamplingOptions, decode, make_sampler, prefill
from afmoe_mlx.models import read_config
from afmoe_mlx.models.shapes import shape

BARS = {"decode": 1.3, "prefill": 1.1}
KINDS = ("ours", "mlx-lm")


def make(kind: str, options: argparse.Namespace) -> Any:
    """The model of a process, with the same random weights for both kinds."""
    raw = shape(options.shape, layers=options.layers)
    bits = None if options.bits == 16 else options.bits
    model = random_model(read_config(raw), bits=bits, fuse=kind == "ours")
    if kind == "ours":
        return model
    from mlx_lm.models.afmoe import Model, ModelArgs

    weights = dict(tree_flatten(model.parameters()))
    theirs = Model(ModelArgs.from_dict(raw))
    if bits is not None:
        nn.quantize(theirs, 64, bits, class_predicate=lambda path, _: f"{path}.scales" in weights)
    theirs.load_weights(list(weights.items()))
    theirs.eval()
    return theirs


def steps(kind: str, model: Any, tokens: list[int], count: int) -> tuple[Any, Any]:
    """An iterator over a prompt's first token and `count` more, each way's own loop, and the cache behind it."""
    cache = model.make_cache()
    if kind == "ours":

        def run() -> Any:
            logits = prefill(model, tokens, cache, step_size=512)
            yield from decode(model, logits, cache, make_sampler(SamplingOptions()), limit=count + 1)

        return run(), cache
    from mlx_lm.generate import generate_step

    return generate_step(mx.array(tokens), model, max_tokens=count + 1, prompt_cache=cache), cache


def worker(kind: str, options: argparse.Namespace) -> dict[str, float]:
    """Tokens a second, memory, and operations of one process."""
    model = make(kind, options)
    tokens = [(7919 * i) % 8000 for i in range(options.prompt)]
    with device.resident():
        for _ in steps(kind, model, tokens[:64], 4)[0]:
            pass
        mx.reset_peak_memory()
        began = time.perf_counter()
        run, cache = steps(kind, model, tokens, options.generation)
        next(run)
        first = time.perf_counter()
        for _ in run:
            pass
        ended = time.perf_counter()
    result = {"prefill": options.prompt / (first - began), "decode": options.generation / (ended - first)}
    result |= {"peak": mx.get_peak_memory() / 1e9, "copy": device.copy_bandwidth()}
    graph = mx.argmax(model(mx.array([[1]]), cache=cache)[:, -1], axis=-1)
    result["operations"] = operations(graph).total() / len(model.model.layers)
    if kind == "ours":
        reads = bytes_per_token(model, cache, options.prompt + options.generation // 2)
        result["bytes"] = reads.weights + reads.cache
    return result


def run(kind: str, name: str, bits: int, options: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, __file__, "--worker", kind, "--shape", name, "--bits", str(bits)]
    command += ["--prompt", str(options.prompt), "--generation", str(options.generation)]
    command += ["--layers", str(options.layers)] if options.layers else []
    result: dict[str, float] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return result


def report(name: str, bits: int, options: argparse.Namespace) -> None:
    calls = [lambda kind=kind: run(kind, name, bits, options) for kind in KINDS]  # type: ignore[misc]
    results = dict(zip(KINDS, alternated(options.runs, *calls), strict=True))
    read = results["ours"][0]["bytes"]
    for kind, rows in results.items():
        values = {
            key: median([row[key] for row in rows]) for key in ("prefill", "decode", "peak", "copy", "operations")
        }
        share = read * values["decode"] / values["copy"]
        cells = [f"{values['prefill']:9.1f}", f"{values['decode']:8.1f}", f"{values['peak']:7.2f}", f"{share:7.0%}"]
        print(f"| {name} | {bits} | {kind} | {' | '.join(cells)} | {values['operations']:.1f} |", flush=True)
    ratios = [paired_ratio(*([row[key] for row in results[kind]] for kind in KINDS)) for key in ("prefill", "decode")]
    print(f"| {name} | {bits} | ours / mlx-lm | {ratios[0]:9.2f} | {ratios[1]:8.2f} | | | |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="+", default=["trinity-nano", "trinity-mini"])
    parser.add_argument("--all-bits", nargs="+", type=int, default=[4, 16])
    parser.add_argument("--layers", type=int, help="the first layers alone")
    parser.add_argument("--prompt", type=int, default=2048)
    parser.add_argument("--generation", type=int, default=128)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--worker", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--shape", help=argparse.SUPPRESS)
    parser.add_argument("--bits", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(worker(options.worker, options)))
        return
    print(f"{device.device_name()} ({device.backend()}), mlx {mx.__version__}, medians of {options.runs}; bars: {BARS}")
    print("| shape | bits | | prefill tok/s | decode tok/s | peak GB | of copy bandwidth | operations a layer |")
    print("|---|---|---|---|---|---|---|---|")
    for name in options.shapes:
        for bits in options.all_bits:
            report(name, bits, options)


if __name__ == "__main__":
    main()
