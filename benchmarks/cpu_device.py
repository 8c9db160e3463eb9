"""What the CPU does with a 4-bit bfloat16 checkpoint, ours and mlx-lm's: `python benchmarks/cpu_device.py [--runs N]`

Eight layers of Trinity Nano's width, a vocabulary of 8192: decode steps and a prompt, each run a process of its own, in
turns. mlx-lm runs as it is, in bfloat16 (minutes a run), and made to compute in float32. Ours runs with the fast BLAS
that is installed, and without.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

BARS = """bars: decode >= 6 x mlx-lm's in bfloat16 and >= 1.0 x its float32; a prompt of 128 tokens >= 8 x its bfloat16
(>= 20 x with OpenBLAS), one of 256 tokens >= 4 x its float32 (with OpenBLAS)"""
KINDS = ("ours", "ours, reference BLAS", "mlx-lm, float32", "mlx-lm, bfloat16")


def worker(kind: str, folder: str, prompt: int, steps: int) -> dict[str, float]:
    """Seconds of a prompt and of a decode step, after one small prompt to warm up."""
    if kind == "ours":
        import afmoe_mlx  # noqa: F401  (before MLX, so that MLX finds the fast BLAS)
    import mlx.core as mx

    if kind.startswith("ours"):
        from afmoe_mlx import load_model

        model: Any = load_model(folder)[0]
    else:
        from mlx_lm.utils import load_model as load_theirs

        model = load_theirs(Path(folder))[0]
        if kind.endswith("float32"):
            model.set_dtype(mx.float32)
            mx.eval(model.parameters())
    cache = model.make_cache()
    mx.eval(model(mx.array([[1, 2]]), cache=cache))
    began = time.perf_counter()
    logits = model(mx.array([[(7919 * i) % 8000 for i in range(prompt)]]), cache=cache)[:, -1]
    mx.eval(logits)
    read = time.perf_counter()
    for _ in range(steps):
        logits = model(mx.argmax(logits, axis=-1)[:, None], cache=cache)[:, -1]
        mx.eval(logits)
    return {"prompt": read - began, "step": (time.perf_counter() - read) / steps}


def run(kind: str, folder: str, prompt: int, steps: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--worker", kind, folder, str(prompt), str(steps)]
    result: dict[str, float] = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return result


def main() -> None:
    from afmoe_mlx.device import preload_blas

    fast = preload_blas()
    from narrow import alternated, median

    from afmoe_mlx.checkpoint.random import save_random
    from afmoe_mlx.models.shapes import shape

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--slow-runs", type=int, default=1, help="of mlx-lm in bfloat16; 0 leaves it out")
    parser.add_argument("--layers", type=int, default=8)
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, {fast or 'no fast BLAS'}, medians of {options.runs} runs\n{BARS}")
    with tempfile.TemporaryDirectory() as temporary:
        raw = shape("trinity-nano", layers=options.layers) | {"vocab_size": 8192}
        folder = str(save_random(Path(temporary) / "model", raw, bits=4))
        for prompt, kinds in ((256, KINDS[:3]), (128, KINDS[:2])):
            calls = [lambda k=k, p=prompt: run(k, folder, p, 16) for k in kinds]  # type: ignore[misc]
            results = dict(zip(kinds, alternated(options.runs, *calls), strict=True))
            if prompt == 128 and options.slow_runs:
                results[KINDS[3]] = [run(KINDS[3], folder, prompt, 4) for _ in range(options.slow_runs)]
            print(f"\na prompt of {prompt} tokens; the ratio is the time of ours with the fast BLAS in it")
            mine = {key: median([r[key] for r in results["ours"]]) for key in ("prompt", "step")}
            for kind, rows in results.items():
                values = {key: median([r[key] for r in rows]) for key in mine}
                cells = [f"{key} {1000 * s:9.0f} ms ({s / mine[key]:5.1f} x)" for key, s in values.items()]
                print(f"{kind:22} {'   '.join(cells)}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        print(json.dumps(worker(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))))
    else:
        main()
