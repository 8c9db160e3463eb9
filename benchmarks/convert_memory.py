"""What a conversion to 4 bits takes, ours and mlx-lm's in turns: `python benchmarks/convert_memory.py`

Checkpoints as the Hub has them, in bfloat16, a tensor an expert, in files of 1 GB, are written to a temporary folder:
as many layers of Trinity Nano, with its whole vocabulary, as there are in 2 and in 6 GB. Each conversion is a process
of its own, from its start to its end. The checkpoint lies in the disk's cache if there is room for it, which counts as
nobody's memory; memory is the most that was resident.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

SIZES = (2.0, 6.0)
# Growth: of memory, in parts of what the source grows by; headers grow with it, weights must not.
BAR_GROWTH, BAR_MEMORY, BAR_SECONDS = 0.01, 0.35, 1.0
FILE_BYTES = 10**9
KINDS = {"ours": "afmoe_mlx", "mlx-lm": "mlx_lm"}

# A child's memory is told apart from other children's only where it is the only one.
MEASURE = """
import json, resource, subprocess, sys, time
began = time.perf_counter()
done = subprocess.run(sys.argv[1:], capture_output=True, text=True)
seconds = time.perf_counter() - began
if done.returncode:
    sys.exit(done.stdout + done.stderr)
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(json.dumps({"seconds": seconds, "peak": peak}))
"""

Shape = tuple[int, ...]


def hub_files(raw: dict[str, Any]) -> list[dict[str, Shape]]:
    """The tensors of a config's model as the Hub has them, file by file."""
    from mlx.utils import tree_flatten

    from afmoe_mlx.conversion.hub_layout import hub_tensors
    from afmoe_mlx.models import make_model, read_config

    files: list[dict[str, Shape]] = [{}]
    size = 0
    for ours, array in dict(tree_flatten(make_model(read_config(raw)).parameters())).items():
        for name, shape in hub_tensors(ours, array.shape, raw["model_type"]):
            if size > FILE_BYTES:
                files.append({})
                size = 0
            files[-1][name] = shape
            size += 2 * prod(shape)
    return files


def write_checkpoint(folder: Path, layers: int) -> Path:
    """Random bfloat16 weights of the first layers of Trinity Nano, in the Hub's layout, with a small tokenizer."""
    import mlx.core as mx
    from checkpoints import TOKENIZER

    from afmoe_mlx.api import DEMO
    from afmoe_mlx.checkpoint.save import shard_names, write_json
    from afmoe_mlx.models.shapes import shape

    raw = shape("trinity-nano", layers=layers)
    files = hub_files(raw)
    names = shard_names(len(files))
    folder.mkdir()
    weight_map: dict[str, str] = {}
    for i, (file, tensors) in enumerate(zip(names, files, strict=True)):
        keys = mx.random.split(mx.random.key(i), len(tensors))
        arrays = {
            name: mx.random.uniform(-0.03, 0.03, size, dtype=mx.bfloat16, key=key)
            for (name, size), key in zip(tensors.items(), keys, strict=True)
        }
        for array in arrays.values():
            mx.eval(array)
        mx.save_safetensors(str(folder / file), arrays, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    write_json(folder / "config.json", raw)
    for name in TOKENIZER:
        shutil.copyfile(DEMO / name, folder / name)
    return folder


def layers_in(gigabytes: float) -> int:
    """How many layers of Trinity Nano, with its embeddings, there are in so many GB of bfloat16."""
    from afmoe_mlx.footprint.weights import count_parameters
    from afmoe_mlx.models import read_config
    from afmoe_mlx.models.shapes import shape

    few, more = (count_parameters(read_config(shape("trinity-nano", layers=n))).total for n in (4, 5))
    return 4 + round((gigabytes * 1e9 / 2 - few) / (more - few))


def run(kind: str, source: Path, target: Path) -> dict[str, float]:
    """Convert once, and remove the result; seconds, and the peak of resident memory in bytes."""
    command = [sys.executable, "-m", KINDS[kind], "convert", "-q", "--hf-path", str(source), "--mlx-path", str(target)]
    done = subprocess.run([sys.executable, "-c", MEASURE, *command], stdout=subprocess.PIPE, check=True)
    shutil.rmtree(target)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def measured(folder: Path, gigabytes: float, runs: int) -> Iterator[tuple[str, list[dict[str, float]]]]:
    """What both take for a checkpoint of so many GB, the runs in turns; prints a line of each."""
    from narrow import alternated, median

    source = write_checkpoint(folder / "source", layers_in(gigabytes))
    size = sum(path.stat().st_size for path in source.glob("*.safetensors"))
    calls = [lambda kind=kind: run(kind, source, folder / "target") for kind in KINDS]  # type: ignore[misc]
    results = alternated(runs, *calls)
    shutil.rmtree(source)
    for kind, rows in zip(KINDS, results, strict=True):
        seconds, peak = (median([row[key] for row in rows]) for key in ("seconds", "peak"))
        speed = size / 1e6 / seconds
        print(
            f"{size / 1e9:6.2f} GB  {kind:8}{seconds:8.1f} s{speed:8.0f} MB/s{peak / 1e6:8.0f} MB at most", flush=True
        )
        yield kind, rows


def main() -> None:
    from narrow import median, paired_ratio

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    runs = parser.parse_args().runs
    print(f"{os.cpu_count()} cores, medians of {runs} runs in turns")
    with tempfile.TemporaryDirectory() as temporary:
        small, large = (dict(measured(Path(temporary), size, runs)) for size in SIZES)
    for kind in KINDS:
        peaks = [median([row["peak"] for row in rows[kind]]) for rows in (small, large)]
        growth = (peaks[1] - peaks[0]) / (SIZES[1] - SIZES[0]) / 1e9
        print(f"memory of {kind} grows by {growth:.1%} of what the source does, bar for ours {BAR_GROWTH:.1%}")
    for key, bar in (("peak", BAR_MEMORY), ("seconds", BAR_SECONDS)):
        ratio = paired_ratio([row[key] for row in large["ours"]], [row[key] for row in large["mlx-lm"]])
        print(f"ratio of {key} to mlx-lm's on the larger {ratio:.2f}, bar {bar:.2f}")
    ratio = paired_ratio([row["seconds"] for row in small["ours"]], [row["seconds"] for row in small["mlx-lm"]])
    print(f"ratio of seconds on the smaller {ratio:.2f}, bar {BAR_SECONDS:.2f}")


if __name__ == "__main__":
    main()
