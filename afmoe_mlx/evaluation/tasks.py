"""`afmoe-mlx eval --tasks`: the tasks of lm-evaluation-harness, which mlx-lm runs in a process of its own."""

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..api import DEMO
from ..checkpoint import resolve
from ..errors import InputError
from ..footprint import fit_check
from ..terminal import printable

Results = dict[str, dict[str, Any]]


def run_tasks(
    model: str,
    tasks: str,
    *,
    num_shots: int | None,
    limit: int | None,
    revision: str | None,
    force: bool,
) -> Results:
    """What tasks, by their names with commas between, measure of a model; status goes to stderr.

    num_shots: examples in each prompt, by default the task's own; limit: questions of each task. force: run what does
    not fit in memory. InputError if mlx-lm cannot run them.
    """
    names = [name for name in map(str.strip, tasks.split(",")) if name]
    if not names or any(name.startswith("-") for name in names):
        raise InputError(f"--tasks is {tasks!r}: expected names of tasks, such as arc_easy,hellaswag")
    if importlib.util.find_spec("lm_eval") is None:
        raise InputError("--tasks needs lm_eval, which is not installed: pip install 'mlx-lm[evaluate]'")
    if model == "demo" and revision is not None:
        raise InputError("the demo comes with the package and has no revisions: leave out the revision")
    check = None if force else fit_check(model)
    folder = DEMO if model == "demo" else resolve(model, revision=revision, check=check)
    options = [("--num-shots", num_shots), ("--limit", limit)]
    arguments = [text for name, value in options if value is not None for text in (name, str(value))]
    return run_mlx_lm(folder, names, arguments)


def run_mlx_lm(folder: Path, tasks: Sequence[str], arguments: Sequence[str]) -> Results:
    """What `mlx_lm evaluate` measures of the model in a folder, by task; InputError if it fails."""
    with tempfile.TemporaryDirectory(prefix="afmoe-mlx-eval-") as output:
        # -P: no module is taken from the folder that the user happens to be in
        command = [sys.executable, "-P", "-m", "mlx_lm", "evaluate", "--model", str(folder.resolve())]
        command += ["--output-dir", output, "--tasks", *tasks, *arguments]
        done = subprocess.run(command, stdout=2, check=False)
        if done.returncode:
            raise InputError(f"mlx_lm evaluate failed with status {done.returncode}: what it said stands above")
        files = list(Path(output).iterdir())
        if len(files) != 1:
            raise InputError(f"mlx_lm evaluate wrote {len(files)} files: expected its results in one")
        results: Results = json.loads(files[0].read_text(encoding="utf-8"))
    return results


def table(results: Results) -> str:
    """A line for each measure of each task, with its standard error where there is one."""
    lines = []
    for task, measures in results.items():
        for name, value in measures.items():
            metric, _, variant = name.partition(",")
            if not isinstance(value, float) or metric.endswith("_stderr"):
                continue
            error = measures.get(f"{metric}_stderr,{variant}")
            spread = f" ± {error:.4f}" if isinstance(error, float) else ""
            lines.append(f"{printable(task):32}{printable(metric):24}{value:10.4f}{spread}\n")
    return "".join(lines)
