"""What a decode step costs beside arithmetic, ours and mlx-lm's: `python benchmarks/host_overhead.py [--runs N]`

Trinity Nano's 56 layers at a hidden size of 64, float32, the same weights: time a greedy token over 300 tokens, past a
window of 256, kernels warm; the time to build the graph and the time to evaluate it; and the very first token of a
process with no kernel cached, with a C++ compiler and without. Each run is a process of its own: models that take turns
in one find each other's freed memory, and building a graph is little else than to allocate its nodes.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from typing import Any, NamedTuple

import mlx.core as mx
from narrow import alternated, median, narrow_model, narrow_pair, paired_ratio

TOKENS, WARM = 300, 20
KINDS = ("mlx-lm", "ours, compiled", "ours, not compiled")
BARS = {"token": 0.45, "build": 0.4}

FIRST = """
import time, sys
from narrow import narrow_config
import mlx.core as mx
from afmoe_mlx.checkpoint.random import random_model
from afmoe_mlx.models import read_config
model = random_model(read_config(narrow_config()), dtype=mx.float32)
model.compiles_decode = sys.argv[1] == "True"
cache = model.make_cache()
began = time.perf_counter()
mx.eval(model(mx.array([[1]]), cache=cache))
print(time.perf_counter() - began)
"""


class Cost(NamedTuple):
    """Milliseconds a token, medians of a run."""

    token: float
    build: float
    evaluate: float


def worker(kind: str) -> Cost:
    """Generate greedily from one token."""
    if kind == "mlx-lm":
        model: Any = narrow_pair()[1]
        gc.collect()
    else:
        model = narrow_model()
        model.compiles_decode = kind == "ours, compiled"
    cache, token = model.make_cache(), mx.array([1])
    built, evaluated = [], []
    for i in range(WARM + TOKENS):
        began = time.perf_counter()
        token = mx.argmax(model(token[:, None], cache=cache)[:, -1], axis=-1)
        middle = time.perf_counter()
        mx.eval(token)
        if i >= WARM:
            built.append(middle - began)
            evaluated.append(time.perf_counter() - middle)
    totals = [a + b for a, b in zip(built, evaluated, strict=True)]
    return Cost(*(1000 * median(values) for values in (totals, built, evaluated)))


def run(kind: str) -> Cost:
    command = [sys.executable, __file__, "--worker", kind]
    return Cost(*json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout))


def first_token(*, compiles: bool, compiler: bool) -> float:
    """Seconds of the first token in a new process with an empty folder for kernels."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"TMPDIR": folder} | ({} if compiler else {"PATH": ""})
        command = [sys.executable, "-c", FIRST, str(compiles)]
        here = os.path.dirname(os.path.abspath(__file__))
        return float(subprocess.run(command, env=environment, cwd=here, capture_output=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--worker", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(worker(options.worker)))
        return
    results = alternated(options.runs, *(partial(run, kind) for kind in KINDS))
    print(f"ms a token ({mx.default_device()}), medians of {options.runs} runs of {TOKENS} tokens; ratios to mlx-lm's")
    for field in Cost._fields:
        values = [[getattr(cost, field) for cost in runs] for runs in results]
        cells = [f"{median(v):7.2f} ({paired_ratio(v, values[0]):.2f} x)" for v in values]
        bar = f"bar for ours, compiled: {BARS[field]}" if field in BARS else ""
        print(f"{field:9}" + "".join(f"{name}: {cell}   " for name, cell in zip(KINDS, cells, strict=True)) + bar)
    print("\nvery first token, no kernel cached, seconds")
    for compiles in (False, True):
        for compiler in (True, False):
            seconds = first_token(compiles=compiles, compiler=compiler)
            print(
                f"  {'compiled' if compiles else 'not compiled'}, {'a' if compiler else 'no'} compiler: {seconds:.2f}"
            )


if __name__ == "__main__":
    main()
