"""The arguments of the commands that say what this machine can do."""

from typing import Annotated

import typer

from ..options import MODEL_HELP, KVBits, Model, PrefillStepSize, Revision
from .answer import or_demo


def info(
    model: Annotated[str, typer.Argument(help=MODEL_HELP + " demo is the built-in one.")],
    context: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of conversation to count; 32768 if not given, or the model's most."),
    ] = None,
    kv_bits: KVBits = None,
    revision: Revision = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what a model needs, and where it fits, without downloading its weights."""
    from .. import info as command

    command.run(model, context=context, kv_bits=kv_bits, revision=revision, as_json=as_json)


def bench(
    model: Model = None,
    shape: Annotated[
        str | None, typer.Option(help="Random weights in the shape of trinity-nano, -mini, -large or lfm2-8b-a1b.")
    ] = None,
    layers: Annotated[int | None, typer.Option(help="The first layers of --shape alone.")] = None,
    bits: Annotated[int | None, typer.Option(help="Bits a weight of --shape, 4 by default; 16 is bfloat16.")] = None,
    prompt_tokens: Annotated[int, typer.Option("--prompt-tokens", "-p", help="Length of each prompt.")] = 512,
    generation_tokens: Annotated[int, typer.Option("--generation-tokens", "-g", help="Tokens after it.")] = 128,
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", help="Prompts at a time.")] = 1,
    num_trials: Annotated[int, typer.Option("--num-trials", "-n", help="Runs, of which the median counts.")] = 5,
    prefill_step_size: PrefillStepSize = 512,
    revision: Revision = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure a model's speed here, or that of a shape with random weights, before a download."""
    if shape is None and not (layers is None and bits is None):
        raise typer.BadParameter("--layers and --bits need --shape")
    if shape is not None and not (model is None and revision is None):
        raise typer.BadParameter("choose --model or --shape, not both")
    from .. import bench as command

    settings = command.Settings(
        prompt_tokens=prompt_tokens,
        generation_tokens=generation_tokens,
        batch_size=batch_size,
        num_trials=num_trials,
        prefill_step_size=prefill_step_size,
    )
    if shape is None:
        command.bench_model(or_demo(model), settings, revision=revision, as_json=as_json)
    else:
        bits = 4 if bits is None else bits
        command.bench_shape(shape, settings, layers=layers, bits=bits, as_json=as_json)


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Look at this machine: device, memory, libraries, the Hub and its cache, and what to do about each problem."""
    from .. import doctor as command

    command.run(as_json=as_json)
