"""A training step, ours and mlx-lm's, in turns: `python benchmarks/tuning.py [--runs N] [--length L]`

LoRA of attention, dense and shared MLPs of the built-in model, batches of 4 rows, in float32 and in 4 bits with float32
scales; each run is a process of its own, which takes the median of its steps. Peak memory is MLX's own count.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import afmoe_mlx  # noqa: F401  # first: with a fast BLAS, which both programs then use

# isort: split
import mlx.core as mx
import mlx.optimizers

ROWS, STEPS, WARM = 4, 5, 2
BARS = "bars: time <= 1.05 x mlx-lm's, peak memory <= 1.0 x; with --grad-checkpoint <= 0.6 x without at 1,024 tokens"
MLPS = tuple(f"{mlp}.{name}_proj" for mlp in ("mlp", "mlp.shared_experts") for name in ("gate", "up", "down"))
KEYS = [*(f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj")), *MLPS]


def tokens(length: int) -> mx.array:
    return mx.random.randint(3, 2000, (ROWS, length), key=mx.random.key(1)).astype(mx.int32)


def ours(format: str, length: int, recomputes: bool) -> Any:
    from afmoe_mlx.training.batches import Batch
    from afmoe_mlx.training.group import Group
    from afmoe_mlx.training.trainer import Trainer
    from afmoe_mlx.training.training import Options, start

    model = our_model(format)
    start(model, Options(targets=KEYS, grad_checkpoint=recomputes))
    trainer = Trainer(model, mlx.optimizers.Adam(1e-4), Group())
    batch = Batch(tokens(length), mx.ones((ROWS, length), mx.bool_), ())
    return lambda: trainer.learn(batch, updates=True)


def our_model(format: str) -> Any:
    from afmoe_mlx.api import DEMO
    from afmoe_mlx.checkpoint.load import load_model

    folder = DEMO if format == "4 bits" else Path(__file__).parent / "demo-bf16"
    return load_model(folder, fuse=False, dtype=mx.float32)[0]


def theirs(format: str, length: int, recomputes: bool) -> Any:
    """A step of `mlx_lm.tuner.trainer.train`, which has none by itself: the same compiled function."""
    from functools import partial

    import mlx.nn as nn
    from mlx_lm.tuner.trainer import default_loss, grad_checkpoint
    from mlx_lm.tuner.utils import linear_to_lora_layers
    from mlx_lm.utils import load_model

    from afmoe_mlx.api import DEMO

    folder = DEMO if format == "4 bits" else Path(__file__).parent / "demo-bf16"
    model, _ = load_model(folder)
    model.set_dtype(mx.float32)
    mx.eval(model.parameters())
    model.freeze()
    linear_to_lora_layers(model, -1, {"rank": 8, "scale": 20.0, "dropout": 0.0, "keys": KEYS})
    if recomputes:
        grad_checkpoint(model.layers[0])
    optimizer = mlx.optimizers.Adam(1e-4)
    gradient = nn.value_and_grad(model, default_loss)
    state = [model.state, optimizer.state, mx.random.state]

    @partial(mx.compile, inputs=state, outputs=state)
    def step(batch: mx.array, lengths: mx.array) -> mx.array:
        (loss, count), found = gradient(model, batch, lengths)
        optimizer.update(model, found)
        return loss, count

    batch, lengths = tokens(length), mx.array([[0, length]] * ROWS)
    model.train()

    def run() -> None:
        mx.eval(state, step(batch, lengths))

    return run


def measure(program: str, format: str, length: int, recomputes: bool) -> dict[str, float]:
    step = {"ours": ours, "mlx-lm": theirs}[program](format, length, recomputes)
    for _ in range(WARM):
        step()
    mx.clear_cache()
    mx.reset_peak_memory()
    taken = []
    for _ in range(STEPS):
        began = time.perf_counter()
        step()
        taken.append(time.perf_counter() - began)
    return {"seconds": statistics.median(taken), "peak": mx.get_peak_memory()}


def child(*args: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", *args]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--length", type=int, default=129)
    parser.add_argument("--child", nargs=4)
    options = parser.parse_args()
    if options.child:
        program, format, length, recomputes = options.child
        print(json.dumps(measure(program, format, int(length), recomputes == "1")))
        return
    print(BARS)
    for format in ("float32", "4 bits"):
        found: dict[str, list[dict[str, float]]] = {"ours": [], "mlx-lm": []}
        for _ in range(options.runs):
            for program, results in found.items():
                results.append(child(program, format, str(options.length), "0"))
        for key in ("seconds", "peak"):
            ratios = [a[key] / b[key] for a, b in zip(found["ours"], found["mlx-lm"], strict=True)]
            each = ", ".join(f"{name} {statistics.median(r[key] for r in rs):.4g}" for name, rs in found.items())
            print(f"{format}, {ROWS} x {options.length} tokens: {key} {statistics.median(ratios):.2f} x ({each})")
    kept, again = (child("ours", "4 bits", "257", recomputes) for recomputes in "01")
    print(f"--grad-checkpoint at {ROWS} x 257 tokens: peak {again['peak'] / kept['peak']:.2f} x")


if __name__ == "__main__":
    main()
