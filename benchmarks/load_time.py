"""How long a 4-bit checkpoint of 1 GB takes to load, ours and mlx-lm's in turns: `python benchmarks/load_time.py`

Each load is a process of its own, timed from the folder to evaluated weights, imports aside. The checkpoint is written
once, to a temporary folder, and lies in the disk's cache. Ours also fuses, and on the CPU makes float32 of the scales.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BAR = 1.0
KINDS = ("ours", "mlx-lm")


def worker(kind: str, folder: str) -> dict[str, float]:
    """Load once; seconds, and the peak of resident memory in bytes."""
    if kind == "ours":
        from afmoe_mlx import load_model
    else:
        from mlx_lm.utils import load_model
    import mlx.core as mx

    mx.eval(mx.zeros(1))
    began = time.perf_counter()
    model = load_model(Path(folder))[0]
    seconds = time.perf_counter() - began
    assert model is not None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"seconds": seconds, "peak": peak, "held": mx.get_active_memory()}


def run(kind: str, folder: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--worker", kind, folder]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def main() -> None:
    from checkpoints import gigabyte_checkpoint
    from narrow import alternated, median, paired_ratio

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as temporary:
        folder = gigabyte_checkpoint(Path(temporary) / "model")
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        calls = [lambda kind=kind: run(kind, str(folder)) for kind in KINDS]  # type: ignore[misc]
        for call in calls:
            call()
        results = alternated(runs, *calls)
    print(f"{size / 1e9:.2f} GB, {os.cpu_count()} cores, medians of {runs} runs in turns")
    for kind, rows in zip(KINDS, results, strict=True):
        seconds, peak, held = (median([row[key] for row in rows]) for key in ("seconds", "peak", "held"))
        print(f"{kind:8}{seconds:8.2f} s{peak / 1e9:8.2f} GB at most resident{held / 1e9:8.2f} GB held by MLX")
    ours, theirs = ([row["seconds"] for row in rows] for rows in results)
    print(f"ratio of seconds {paired_ratio(ours, theirs):.2f}, bar {BAR:.2f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        print(json.dumps(worker(*sys.argv[2:4])))
    else:
        main()
