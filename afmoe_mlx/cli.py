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
    "No --model: this is the built-in demo, a tiny AFMoE that knows this program.\n"
    "A real one: --model trinity-nano (3.5 GB to download)."
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


class Method(StrEnum):
    gptq = "gptq"
    scales = "scales"


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
    question: Annotated[
        str | None, typer.Argument(help="Answer this and leave; what stands on stdin is put before it.")
    ] = None,
    model: Model = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", "-m", help="End an answer after so many tokens; 2048 if not given.")
    ] = None,
    temp: Temp = None,
    top_p: TopP = None,
    min_p: MinP = None,
    top_k: TopK = None,
    repetition_penalty: RepetitionPenalty = None,
    seed: Seed = None,
    system_prompt: SystemPrompt = None,
    no_think: Annotated[
        bool, typer.Option("--no-think", help="Answer without reasoning first, if the model's template can say so.")
    ] = False,
    resume: Annotated[
        str | None,
        typer.Option(metavar="[NAME]", help="Go on with a saved conversation; the last one if no name follows."),
    ] = None,
    no_save: Annotated[bool, typer.Option("--no-save", help="Do not save the conversation.")] = False,
    no_history: Annotated[
        bool, typer.Option("--no-history", help="Do not keep what is typed for the next run.")
    ] = False,
    no_markdown: Annotated[bool, typer.Option("--no-markdown", help="Show answers as they are written.")] = False,
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
    as_json: Annotated[bool, typer.Option("--json", help="Answer once, as one JSON object.")] = False,
) -> None:
    """Talk with a model in the terminal, or have a question answered once.

    On a terminal, conversations are saved, and what is computed of them is kept on disk: --no-save and --no-disk-cache
    turn that off. Where stdin is no terminal, what stands on it is answered once.
    """
    _check_speculation(prompt_lookup, draft_model)
    if as_json and question is None and sys.stdin is not None and sys.stdin.isatty():
        raise typer.BadParameter('--json needs a question: afmoe-mlx chat --json "…"')
    from .chat import EngineSource, Request, View, run
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
    request = Request(
        model=model if model is None and resume is not None else _or_demo(model),
        source=EngineSource(
            revision=revision,
            draft_model=draft_model,
            kv=KVOptions(kv_bits, kv_group_size, quantized_kv_start),
            context=context,
            force=force,
        ),
        options=options,
        question=question,
        as_json=as_json,
        view=View(markdown=not no_markdown),
        system_prompt=system_prompt,
        thinks=not no_think,
        resume=resume,
        saves=not no_save,
        keeps_history=not no_history,
        prompt_cache_dir=prompt_cache_dir,
        disk_cache=disk_cache,
    )
    raise typer.Exit(run(request))


@app.command(cls=Command)
def convert(
    hf_path: Annotated[
        str, typer.Option("--hf-path", "--model", help=MODEL_HELP + " demo is the built-in one, quantized already.")
    ],
    mlx_path: Annotated[str, typer.Option(help="The folder to write; it must not exist yet.")] = "mlx_model",
    quantize: Annotated[bool, typer.Option("--quantize", "-q", help="Quantize, to 4 bits by default.")] = False,
    q_bits: Annotated[int | None, typer.Option(help="Bits a weight.")] = None,
    q_group_size: Annotated[int | None, typer.Option(help="Weights that share a scale.")] = None,
    q_mode: Annotated[Mode, typer.Option(help="Number format of quantized weights.")] = Mode.affine,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            "--quant-predicate",
            help="Quantize by 4bit, 3bit, 6bit, 8bit, mxfp4, nvfp4, mixed_2_6, mixed_3_4, mixed_3_6, mixed_4_6 or a"
            " TOML file.",
        ),
    ] = None,
    calibrate: Annotated[
        str | None,
        typer.Option(
            metavar="[TEXT]",
            help="Choose quantized weights by a text, or a .jsonl with {text} or {messages} a line; a built-in one if"
            " no file follows.",
        ),
    ] = None,
    calibration_method: Annotated[
        Method | None, typer.Option(help="gptq, the default, is better; scales is quicker.")
    ] = None,
    calibration_tokens: Annotated[int | None, typer.Option(help="Tokens of the text that are used, at most.")] = None,
    calibrate_routed: Annotated[
        bool, typer.Option("--calibrate-routed", help="Each expert sees only the tokens routed to it, to compare.")
    ] = False,
    dtype: Annotated[Dtype | None, typer.Option(help="Format of the other weights; as stored by default.")] = None,
    dequantize: Annotated[
        bool, typer.Option("--dequantize", "-d", help="Make plain weights of quantized ones, in the Hub's layout.")
    ] = False,
    revision: Revision = None,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace the model at --mlx-path, and give up another unfinished conversion."),
    ] = False,
    low_disk: Annotated[
        bool, typer.Option("--low-disk", help="Remove each file fetched from the Hub once it is converted.")
    ] = False,
    upload_repo: Annotated[
        str | None, typer.Option(help="Upload the result as owner/name on the Hub, with a model card.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be written, from headers alone, and write nothing.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="With --dry-run: every tensor on a line.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Convert a model to MLX files, quantized with -q or by a recipe. Killed, the same command continues.

    No built-in recipe quantizes routers, which decide the experts that answer.
    """
    gives_format = q_bits is not None or q_group_size is not None or q_mode is not Mode.affine
    if (quantize or recipe is not None) and dequantize:
        raise typer.BadParameter("choose --quantize, --recipe or --dequantize, one of them")
    if recipe is not None and gives_format:
        raise typer.BadParameter("choose --recipe, or --q-bits, --q-group-size and --q-mode, not both")
    if not quantize and gives_format:
        raise typer.BadParameter("--q-bits, --q-group-size and --q-mode need --quantize")
    if calibrate is not None and not (quantize or recipe is not None):
        raise typer.BadParameter("--calibrate needs --quantize or --recipe")
    if calibrate is None and (calibration_method is not None or calibration_tokens is not None or calibrate_routed):
        raise typer.BadParameter("--calibration-method, --calibration-tokens and --calibrate-routed need --calibrate")
    if verbose and not dry_run:
        raise typer.BadParameter("--verbose needs --dry-run")
    from .commands import convert as command

    request = command.Request(
        source=hf_path,
        destination=mlx_path,
        options=command.Options(
            quantize=quantize,
            bits=q_bits,
            group_size=q_group_size,
            mode=q_mode.value,
            recipe=recipe,
            dtype=dtype.value if dtype else None,
            dequantize=dequantize,
        ),
        revision=revision,
        overwrite=overwrite,
        low_disk=low_disk,
        calibrate=command.calibration(
            calibrate,
            method=calibration_method.value if calibration_method else None,
            tokens=calibration_tokens,
            all_experts=not calibrate_routed,
        ),
        upload_repo=upload_repo,
    )
    if dry_run:
        command.preview(request, verbose=verbose, as_json=as_json)
    else:
        command.run(request, as_json=as_json)


@app.command(cls=Command)
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
    from .commands import info as command

    command.run(model, context=context, kv_bits=kv_bits, revision=revision, as_json=as_json)


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


@app.command("eval", cls=Command)
def evaluate(
    model: Annotated[str, typer.Argument(help=MODEL_HELP + " demo is the built-in one.")],
    reference: Annotated[
        str | None, typer.Option(help="What it was quantized from, given likewise, to measure the distance from.")
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(help="A text, or a .jsonl with {text} or {messages} a line; a built-in one if not given."),
    ] = None,
    sequence_length: Annotated[int, typer.Option(help="Tokens run from an empty context each time.")] = 512,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", "-m", help="Stop after so many of the text.")
    ] = None,
    plot: Annotated[str | None, typer.Option(help="Draw it too, against --reference: a .png, .svg or .pdf.")] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Run these tasks of lm-evaluation-harness through mlx-lm instead: a,b,…")
    ] = None,
    num_shots: Annotated[int | None, typer.Option(min=0, help="Examples in each prompt of --tasks.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Questions of each of --tasks.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Run --tasks on what does not fit in memory.")] = False,
    revision: Revision = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure a model's quality: perplexity, and its distance from a reference."""
    if tasks is None and (num_shots is not None or limit is not None or force):
        raise typer.BadParameter("--num-shots, --limit and --force need --tasks")
    if tasks is not None:
        if not (reference is None and text is None and plot is None and max_tokens is None):
            raise typer.BadParameter("--tasks goes without --reference, --text, --max-tokens and --plot")
        from .commands import tasks as command

        command.run(model, tasks, num_shots=num_shots, limit=limit, revision=revision, force=force, as_json=as_json)
        return
    if plot is not None and reference is None:
        raise typer.BadParameter("--plot needs --reference")
    from .commands import eval as eval_command

    request = eval_command.Request(
        reference=reference,
        text=text,
        sequence_length=sequence_length,
        max_tokens=max_tokens,
        revision=revision,
    )
    eval_command.run(model, request, plot_file=plot, as_json=as_json)


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
