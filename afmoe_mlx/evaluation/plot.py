"""The plot of an evaluation, with matplotlib (extra `plot`)."""

import importlib.util
import os
from pathlib import Path
from typing import Any

from ..errors import InputError
from .evaluation import Evaluation

SUFFIXES = (".png", ".svg", ".pdf")


def check_plot(path: Path) -> None:
    """InputError unless `plot` can write there: asked before an evaluation, which takes long."""
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path}: a plot cannot be written as {path.suffix or 'this'}: expected {', '.join(SUFFIXES)}")
    if not path.parent.is_dir() or path.is_dir():
        found = "is a folder" if path.is_dir() else f"{path.parent} is no folder"
        raise InputError(f"{path}: {found}: expected a file to write in an existing one")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"{path}: {path.parent} cannot be written to: expected a folder of your own")
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("a plot needs matplotlib, which is not installed: pip install 'afmoe-mlx[plot]'")


def plot(evaluation: Evaluation, path: Path) -> None:
    """Write a picture of an evaluation against a reference: divergence, choice of experts, weights."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.8), layout="constrained")
    title = f"{evaluation.model} against {evaluation.reference}, {evaluation.tokens:,} tokens"
    figure.suptitle(title, parse_math=False)
    divergences, experts, weights = figure.subplots(1, 3)
    _draw_divergences(divergences, evaluation)
    _draw_experts(experts, evaluation)
    _draw_weights(weights, evaluation)
    beside = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        figure.savefig(beside, dpi=150, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _draw_divergences(axes: Any, evaluation: Evaluation) -> None:
    """The share of tokens above each divergence."""
    ordered = sorted(evaluation.divergences)
    count = len(ordered)
    least = next((value for value in ordered if value > 0), 1e-9)
    axes.step([max(value, least) for value in ordered], [1 - i / count for i in range(count)], where="post")
    for name, value, style in (("mean", evaluation.kl_mean, "--"), ("99 %", evaluation.kl_p99, ":")):
        if value:
            axes.axvline(value, color="0.5", linestyle=style, label=f"{name}: {value:.2g}")
            axes.legend(loc="lower left")
    axes.set(xscale="log", xlabel="KL(reference ‖ model), nats", ylabel="share of tokens above", ylim=(0, 1))


def _draw_experts(axes: Any, evaluation: Evaluation) -> None:
    by_layer = evaluation.expert_overlap_by_layer or {}
    axes.plot(list(by_layer), list(by_layer.values()), marker="o", markersize=3)
    axes.set(xlabel="layer", ylabel="share of the reference's experts chosen", ylim=(0, 1.02))


def _draw_weights(axes: Any, evaluation: Evaluation) -> None:
    errors = evaluation.weight_errors or {}
    axes.barh(list(errors), list(errors.values()))
    axes.invert_yaxis()
    axes.set(xlabel="relative error of the weights")
