"""What it costs to start, ours and mlx-lm's whole processes in turns: `python benchmarks/cold_start.py [--runs N]`

Each answers with four tokens of the same tiny checkpoint, and prints its help: seconds on the wall and the peak of
resident memory.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from checkpoints import tiny_checkpoint
from narrow import alternated, median, paired_ratio

BARS = {"answer, wall": 1 / 8, "answer, memory": 1 / 4, "help, wall": 1 / 10}


class Cost(NamedTuple):
    """Of one process."""

    seconds: float
    peak_bytes: int


def measure(bytecode: str, *arguments: str) -> Cost:
    """Run `python -m …` and wait for it; compiled modules are kept in the folder `bytecode`."""
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": bytecode}
    command = [sys.executable, "-m", *arguments]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{errors.decode()}")
    return Cost(seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as temporary:
        folder, bytecode = str(tiny_checkpoint(Path(temporary) / "model")), str(Path(temporary) / "bytecode")
        answer = ("generate", "--model", folder, "--prompt", "hello", "--max-tokens", "4")
        commands = [
            (package, *rest) for rest in (answer, ("generate", "--help")) for package in ("afmoe_mlx", "mlx_lm")
        ]
        for command in commands:
            measure(bytecode, *command)  # compiled and in the disk's cache from here on
        results = alternated(runs, *(lambda command=command: measure(bytecode, *command) for command in commands))
    ours, theirs, our_help, their_help = results
    print(f"{os.cpu_count()} cores, medians of {runs} runs in turns\n")
    print(f"{'':16}{'ours':>12}{'mlx-lm':>12}{'ratio':>10}{'bar':>10}")
    show("answer, wall", "s", [c.seconds for c in ours], [c.seconds for c in theirs])
    show("answer, memory", "MB", [c.peak_bytes / 1e6 for c in ours], [c.peak_bytes / 1e6 for c in theirs])
    show("help, wall", "s", [c.seconds for c in our_help], [c.seconds for c in their_help])


def show(name: str, unit: str, ours: list[float], theirs: list[float]) -> None:
    digits = 0 if unit == "MB" else 2
    cells = "".join(f"{median(values):9.{digits}f} {unit:2}" for values in (ours, theirs))
    print(f"{name:16}{cells}{paired_ratio(ours, theirs):10.3f}{BARS[name]:10.3f}")


if __name__ == "__main__":
    main()
