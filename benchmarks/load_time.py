"""How long a 4-bit checkpoint of 1 GB takes to load, ours and mlx-lm's in turns: `python benchmarks/load_time.py`

Each load is a process of its own, timed from the folder to evaluated weights, imports aside. The checkpoint is written
once, to a temporary folder, and lies in the disk's cache. Ours also fuses, and on the CPU makes float32 of the scales,
for a bfloat16 product takes many times as long there; mlx-lm is timed as it is and made to do so, too.
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
KINDS = ("ours", "mlx-lm", "mlx-lm, float32")


def worker(kind: str, folder: str) -> dict[str, float]:
    """Load once; seconds on the wall and of processors, page faults, and the peak of resident memory in bytes."""
    if kind == "ours":
        from afmoe_mlx import load_model
    else:
        from mlx_lm.utils import load_model
    import mlx.core as mx

    mx.eval(mx.zeros(1))
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    model = load_model(Path(folder))[0]
    if kind.endswith("float32"):
        model.set_dtype(mx.float32)
        mx.eval(model.parameters())
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": seconds,
        "processors": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "faults": after.ru_minflt - before.ru_minflt,
        "peak": after.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        "held": mx.get_active_memory(),
    }


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
        middle = {key: median([row[key] for row in rows]) for key in rows[0]}
        ratio = paired_ratio([row["seconds"] for row in results[0]], [row["seconds"] for row in rows])
        print(
            f"{kind:17}{middle['seconds']:6.2f} s, {middle['processors']:.2f} s of processors,"
            f" {middle['faults'] / 1000:.0f} thousand page faults, {middle['peak'] / 1e9:.2f} GB at most resident,"
            f" {middle['held'] / 1e9:.2f} GB held by MLX; ours takes {ratio:.2f} x the time"
        )
    print(f"bar: {BAR:.2f} x mlx-lm's time")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        print(json.dumps(worker(*sys.argv[2:4])))
    else:
        main()
