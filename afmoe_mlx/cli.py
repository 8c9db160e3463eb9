"""The commands: each reads its arguments, imports what it needs and makes one call."""

import io
import sys
from enum import StrEnum
from typing import Annotated

import typer

from .commands.options import (
    MODEL_HELP,
    CacheDirectory,
    Context,
    DiskCache,
    DraftModel,
    Force,
    KVBits,
    KVGroupSize,
    KVStart,
    MinP,
    MinTokens,
    Model,
    NumDraftTokens,
    PrefillStepSize,
    PromptCacheDir,
    PromptLookup,
    RepetitionPenalty,
    Revision,
    Seed,
    Stop,
    SystemPrompt,
    Temp,
    TopK,
    TopP,
    XtcProbability,
    XtcThreshold,
)
from .commands.parsing import Command, Group
from .terminal import note

DEMO_NOTE = (
    "No --model: this is the built-in demo, a tiny AFMoE that knows this program alone."
    " A real one: --model trinity-nano (3.5 GB to download)."
)

app = typer.Typer(cls=Group, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=True)
models_app = typer.Typer(help="List the models with a short name and those in the local cache.")
app.add_typer(models_app, name="models", invoke_without_command=True)
cache_app = typer.Typer(help="Show what is kept of prompts on disk, and trim or clear it.")
app.add_typer(cache_app, name="cache", invoke_without_command=True)


class Dtype(StrEnum):
    float16 = "float16"
    bfloat16 = "bfloat16"
    float32 = "float32"


class Mode(StrEnum):
    affine = "affine"
    mxfp4 = "mxfp4"
    nvfp4 = "nvfp4"
    mxfp8 = "mxfp8"


def _version(value: bool) -> None:
    if value:
        from . import __version__

        typer.echo(f"afmoe-mlx {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Run Arcee's Trinity (AFMoE) and Liquid's LFM2-MoE models on this machine."""


def _or_demo(model: str | None) -> str:
    """The model to load, with a word on stderr about what its user may not expect."""
    if model is None:
        note(DEMO_NOTE, dim=True)
        return "demo"
    from .checkpoint.names import find

    if (row := find(model)) and row.note:
        note(f"{row.name} ({row.download_bytes / 1e9:.0f} GB to download): {row.note}", dim=True)
    return model


def _check_speculation(prompt_lookup: int | None, draft_model: str | None) -> None:
    if prompt_lookup is not None and draft_model is not None:
        raise typer.BadParameter("choose --prompt-lookup or --draft-model, not both")


@app.command(cls=Command)
def generate(
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="The message to answer; - reads it from stdin.")],
    model: Model = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-m", help="End the answer after so many tokens.")] = 256,
    temp: Temp = None,
    top_p: TopP = None,
    min_p: MinP = None,
    min_tokens_to_keep: MinTokens = None,
    top_k: TopK = None,
    xtc_probability: XtcProbability = None,
    xtc_threshold: XtcThreshold = None,
    repetition_penalty: RepetitionPenalty = None,
    seed: Seed = None,
    system_prompt: SystemPrompt = None,
    prefill_response: Annotated[str | None, typer.Option(help="How the answer begins.")] = None,
    ignore_chat_template: Annotated[bool, typer.Option("--ignore-chat-template", help="Use the prompt as is.")] = False,
    chat_template_config: Annotated[str | None, typer.Option(help="Template variables, a JSON object.")] = None,
    extra_eos_token: Annotated[list[str] | None, typer.Option(help="Another token that ends it; repeatable.")] = None,
    stop: Stop = None,
    prompt_lookup: PromptLookup = None,
    draft_model: DraftModel = None,
    num_draft_tokens: NumDraftTokens = 3,
    kv_bits: KVBits = None,
    kv_group_size: KVGroupSize = None,
    quantized_kv_start: KVStart = 0,
    prefill_step_size: PrefillStepSize = 512,
    prompt_cache_file: Annotated[
        str | None,
        typer.Option(help="Continue the conversation saved in this file; if it is not there, save this one."),
    ] = None,
    prompt_cache_dir: PromptCacheDir = None,
    disk_cache: DiskCache = None,
    context: Context = None,
    force: Force = False,
    revision: Revision = None,
    verbose: Annotated[str, typer.Option(help="False: no statistics on stderr.")] = "True",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, with statistics.")] = False,
) -> None:
    """Answer one prompt. What is not set comes from the model's generation_config.json."""
    _check_speculation(prompt_lookup, draft_model)
    from .commands import generate as command
    from .commands.kv_bits import KVOptions

    request = command.Request(
        model=_or_demo(model),
        revision=revision,
        draft_model=draft_model,
        kv=KVOptions(kv_bits, kv_group_size, quantized_kv_start),
        prompt_cache_file=prompt_cache_file,
        prompt_cache_dir=prompt_cache_dir,
        disk_cache=disk_cache,
        prompt=prompt,
        system_prompt=system_prompt,
        prefill_response=prefill_response,
        ignore_chat_template=ignore_chat_template,
        chat_template_config=chat_template_config,
        extra_eos_tokens=extra_eos_token or (),
        context=context,
        force=force,
    )
    options = {
        "max_tokens": max_tokens,
        "stop": stop or (),
        "prefill_step_size": prefill_step_size,
        "prompt_lookup": prompt_lookup,
        "num_draft_tokens": num_draft_tokens,
        "temperature": temp,
        "top_p": top_p,
        "min_p": min_p,
        "min_tokens_to_keep": min_tokens_to_keep,
        "top_k": top_k,
        "xtc_probability": xtc_probability,
        "xtc_threshold": xtc_threshold,
        "repetition_penalty": repetition_penalty,
        "seed": seed,
    }
    wants_statistics = verbose.lower() not in ("false", "f")
    raise typer.Exit(command.run(request, options, verbose=wants_statistics, as_json=as_json))


@app.command(cls=Command)
def chat(
    model: Model = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-m", help="End an answer after so many tokens.")] = 2048,
    temp: Temp = None,
    top_p: TopP = None,
    min_p: MinP = None,
    top_k: TopK = None,
    repetition_penalty: RepetitionPenalty = None,
    seed: Seed = None,
    system_prompt: SystemPrompt = None,
    prompt_lookup: PromptLookup = None,
    draft_model: DraftModel = None,
    num_draft_tokens: NumDraftTokens = 3,
    kv_bits: KVBits = None,
    kv_group_size: KVGroupSize = None,
    quantized_kv_start: KVStart = 0,
    prompt_cache_dir: PromptCacheDir = None,
    disk_cache: DiskCache = None,
    context: Context = None,
    force: Force = False,
    revision: Revision = None,
) -> None:
    """Talk with a model in the terminal; a message on stdin is answered once."""
    _check_speculation(prompt_lookup, draft_model)
    from .chat import run
    from .commands.kv_bits import KVOptions

    options = {
        "max_tokens": max_tokens,
        "temperature": temp,
        "top_p": top_p,
        "min_p": min_p,
        "top_k": top_k,
        "repetition_penalty": repetition_penalty,
        "seed": seed,
        "prompt_lookup": prompt_lookup,
        "num_draft_tokens": num_draft_tokens,
    }
    code = run(
        _or_demo(model),
        revision=revision,
        draft_model=draft_model,
        kv=KVOptions(kv_bits, kv_group_size, quantized_kv_start),
        system_prompt=system_prompt,
        options=options,
        prompt_cache_dir=prompt_cache_dir,
        disk_cache=disk_cache,
        context=context,
        force=force,
    )
    raise typer.Exit(code)


@app.command(cls=Command)
def convert(
    hf_path: Annotated[str, typer.Option("--hf-path", "--model", help=MODEL_HELP)],
    mlx_path: Annotated[str, typer.Option(help="The folder to write; it must not exist yet.")] = "mlx_model",
    quantize: Annotated[bool, typer.Option("--quantize", "-q", help="Quantize, to 4 bits by default.")] = False,
    q_bits: Annotated[int | None, typer.Option(help="Bits a weight.")] = None,
    q_group_size: Annotated[int | None, typer.Option(help="Weights that share a scale.")] = None,
    q_mode: Annotated[Mode, typer.Option(help="Number format of quantized weights.")] = Mode.affine,
    dtype: Annotated[Dtype | None, typer.Option(help="Format of the other weights; as stored by default.")] = None,
    dequantize: Annotated[
        bool, typer.Option("--dequantize", "-d", help="Make plain weights of quantized ones.")
    ] = False,
    revision: Revision = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the model at --mlx-path.")] = False,
) -> None:
    """Convert a model to MLX files, quantized with -q. Routers are never quantized."""
    if quantize and dequantize:
        raise typer.BadParameter("choose --quantize or --dequantize, not both")
    if not quantize and (q_bits is not None or q_group_size is not None or q_mode is not Mode.affine):
        raise typer.BadParameter("--q-bits, --q-group-size and --q-mode need --quantize")
    from .commands import convert as command

    command.run(
        hf_path,
        mlx_path,
        quantize=quantize,
        bits=q_bits,
        group_size=q_group_size,
        mode=q_mode.value,
        dtype=dtype.value if dtype else None,
        dequantize=dequantize,
        revision=revision,
        overwrite=overwrite,
    )


@app.command(cls=Command)
def info(
    model: Annotated[str, typer.Argument(help=MODEL_HELP + " demo is the built-in one.")],
    context: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of conversation to count; 32768 if not given, or the model's most."),
    ] = None,
    revision: Revision = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what a model needs, and where it fits, without downloading its weights."""
    from .commands import info as command

    command.run(model, context=context, revision=revision, as_json=as_json)


@app.command(cls=Command)
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
    from .commands import bench as command

    settings = command.Settings(
        prompt_tokens=prompt_tokens,
        generation_tokens=generation_tokens,
        batch_size=batch_size,
        num_trials=num_trials,
        prefill_step_size=prefill_step_size,
    )
    if shape is None:
        command.bench_model(_or_demo(model), settings, revision=revision, as_json=as_json)
    else:
        bits = 4 if bits is None else bits
        command.bench_shape(shape, settings, layers=layers, bits=bits, as_json=as_json)


@app.command(cls=Command)
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Look at this machine: device, memory, libraries, the Hub and its cache, and what to do about each problem."""
    from .commands import doctor as command

    command.run(as_json=as_json)


@cache_app.callback()
def cache(
    ctx: typer.Context,
    directory: CacheDirectory = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what is kept of prompts on disk, and trim or clear it."""
    if ctx.invoked_subcommand is None:
        from .commands import cache as command

        command.show(directory, as_json=as_json)
        return
    ctx.obj = directory


@cache_app.command("trim")
def trim_cache(
    ctx: typer.Context,
    max_bytes: Annotated[int, typer.Option(min=0, help="Bytes that may stay.")],
    directory: CacheDirectory = None,
) -> None:
    """Delete what has not been used for longest."""
    from .commands import cache as command

    command.shrink(directory or ctx.obj, max_bytes)


@cache_app.command("clear")
def clear_cache(ctx: typer.Context, directory: CacheDirectory = None) -> None:
    """Delete all that is kept of prompts on disk."""
    from .commands import cache as command

    command.shrink(directory or ctx.obj, 0)


@models_app.callback()
def models(
    ctx: typer.Context, as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False
) -> None:
    """List the models with a short name and those in the local cache."""
    if ctx.invoked_subcommand is None:
        from .commands import models as command

        command.list_models(as_json=as_json)


@models_app.command("rm")
def remove_model(name: Annotated[str, typer.Argument(help="A short name or owner/name.")]) -> None:
    """Delete a model from the local cache."""
    from .commands import models as command

    command.remove(name)


def main() -> None:
    """The console script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that is not UTF-8 still gets its text
    app()
