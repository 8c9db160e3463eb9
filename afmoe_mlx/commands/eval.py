"""`afmoe-mlx eval`: a model's perplexity, and its KL divergence from the model it was quantized from."""

import os
from pathlib import Path

from ..command_line.progress import progress_bar
from ..command_line.requests.conversion import EvalRequest
from ..evaluation import Evaluation, evaluate
from ..evaluation.plot import check_plot, plot
from ..evaluation.tasks import run_tasks
from ..evaluation.tasks import table as tasks_table
from ..terminal import note, printable, write, write_json

# Layers whose overlap stands in one line.
COLUMNS = 8


def run(request: EvalRequest) -> None:
    """Evaluate with a progress bar on stderr, or run tasks, and print the figures as a table or as one object."""
    if request.tasks is None:
        _evaluate(request)
        return
    results = run_tasks(
        request.model,
        request.tasks,
        num_shots=request.num_shots,
        limit=request.limit,
        revision=request.revision,
        force=request.force,
    )
    if request.as_json:
        write_json({"model": request.model, "tasks": results}, indent=2)
    else:
        write(tasks_table(results))


def _evaluate(request: EvalRequest) -> None:
    target = None if request.plot is None else Path(os.path.expanduser(request.plot))
    if target is not None:
        check_plot(target)
    if request.experts_in_memory is not None:
        note("An evaluation has one layer in memory at a time, experts and all: --experts-in-memory changes nothing.")
    with progress_bar("evaluating") as show:
        evaluation = evaluate(
            request.model,
            reference=request.reference,
            text=request.text,
            sequence_length=request.sequence_length,
            max_tokens=request.max_tokens,
            revision=request.revision,
            **request.adapters,
            on_progress=show,
        )
    if request.as_json:
        write_json(evaluation.to_json(), indent=2)
    else:
        write(table(evaluation))
    if target is not None:
        plot(evaluation, target)
        note(f"Wrote {target}")


def table(evaluation: Evaluation) -> str:
    """The figures for a person."""
    from rich.console import Console
    from rich.table import Table

    against = "" if evaluation.reference is None else f" against {evaluation.reference}"
    text = "the built-in text" if evaluation.text == "built-in" else evaluation.text
    found = f"{evaluation.tokens:,} tokens predicted in {evaluation.sequences:,} sequences of {text}"
    console = Console(width=100, color_system=None, highlight=False)  # plain text, on a terminal too
    figures = Table("", "model", *(["reference"] if evaluation.reference is not None else []), box=None, padding=(0, 2))
    for column in figures.columns[1:]:
        column.justify = "right"
    for row in rows(evaluation):
        figures.add_row(*row)
    with console.capture() as capture:
        console.print(figures)
    title = printable(f"{evaluation.model}{against}: {found}")
    drawn = [line.rstrip() for line in capture.get().splitlines()]
    return "\n".join([title, *drawn, *lines(evaluation)]) + "\n"


def rows(evaluation: Evaluation) -> list[tuple[str, ...]]:
    """Name, the model's figure and, where there is a reference and it has one, the reference's."""
    e = evaluation
    if e.reference is None:
        return [("Perplexity", f"{e.perplexity:.4f}"), ("Bits per weight", f"{e.bits_per_weight:.3f}")]
    found = [
        ("Perplexity", f"{e.perplexity:.4f}", f"{e.reference_perplexity:.4f}"),
        ("Bits per weight", f"{e.bits_per_weight:.3f}", f"{e.reference_bits_per_weight:.3f}"),
        ("KL divergence, mean", f"{e.kl_mean:.6f}"),
        ("KL divergence, median", f"{e.kl_median:.6f}"),
        ("KL divergence, 99th percentile", f"{e.kl_p99:.6f}"),
        ("Same likeliest token", f"{e.top1_agreement:.2%}"),
    ]
    if e.expert_overlap is not None:
        found.append(("Same experts chosen", f"{e.expert_overlap:.2%}"))
    errors = e.weight_errors or {}
    return found + [(f"Relative error, {kind}", f"{error:.3%}") for kind, error in errors.items()]


def lines(evaluation: Evaluation) -> list[str]:
    """The experts' overlap layer by layer, several in a line."""
    by_layer = evaluation.expert_overlap_by_layer
    if not by_layer:
        return []
    cells = [f"{layer:4}: {share:6.1%}" for layer, share in by_layer.items()]
    grid = ["".join(cells[start : start + COLUMNS]) for start in range(0, len(cells), COLUMNS)]
    return ["", "  Same experts chosen, by layer", *grid]
