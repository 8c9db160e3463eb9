"""The arguments of the commands that answer."""

import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from ...terminal import note
from ..options import (
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
    NoDiskCache,
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

DEMO_NOTE = "The built-in demo, about this program; a real one: --model trinity-nano (3.5 GB)"  # fits 80 columns

# What `stream_generate` calls the options that are handed on to it.
STREAM_OPTIONS = {
    "max_tokens": "max_tokens",
    "prefill_step_size": "prefill_step_size",
    "prompt_lookup": "prompt_lookup",
    "num_draft_tokens": "num_draft_tokens",
    "temp": "temperature",
    "top_p": "top_p",
    "min_p": "min_p",
    "min_tokens_to_keep": "min_tokens_to_keep",
    "top_k": "top_k",
    "xtc_probability": "xtc_probability",
    "xtc_threshold": "xtc_threshold",
    "repetition_penalty": "repetition_penalty",
    "seed": "seed",
}


def or_demo(model: str | None) -> str:
    """The model to load, with a word on stderr about what its user may not expect."""
    if model is None:
        note(DEMO_NOTE, dim=True)
        return "demo"
    from ...checkpoint.names import caution

    if words := caution(model):
        note(words, dim=True)
    return model


def _check_combination(ctx: typer.Context) -> None:
    """BadParameter for options that contradict each other, or do nothing without another."""
    if ctx.params["prompt_lookup"] is not None and ctx.params["draft_model"] is not None:
        raise typer.BadParameter("choose --prompt-lookup or --draft-model, not both")
    if ctx.params["draft_model"] is None and _is_given(ctx, "num_draft_tokens"):
        raise typer.BadParameter("--num-draft-tokens needs --draft-model")
    if ctx.params["kv_bits"] is None and (_is_given(ctx, "kv_group_size") or _is_given(ctx, "quantized_kv_start")):
        raise typer.BadParameter("--kv-group-size and --quantized-kv-start need --kv-bits")


def _is_given(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _wanted(yes: bool, no: bool) -> bool | None:
    """What a pair of flags says: `no` whatever else is said, None for neither."""
    return False if no else yes or None


def stream_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `stream_generate` among a command's, None where the command line says nothing."""
    return {STREAM_OPTIONS[name]: value for name, value in given.items() if name in STREAM_OPTIONS}


def generate(
    ctx: typer.Context,
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
    disk_cache: DiskCache = False,
    no_disk_cache: NoDiskCache = False,
    context: Context = None,
    force: Force = False,
    revision: Revision = None,
    verbose: Annotated[str, typer.Option(help="False: no statistics on stderr.")] = "True",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, with statistics.")] = False,
) -> None:
    """Answer one prompt. What is not set comes from the model's generation_config.json."""
    _check_combination(ctx)
    from .. import generate as command
    from ..kv_bits import KVOptions

    request = command.Request(
        model=or_demo(model),
        revision=revision,
        draft_model=draft_model,
        kv=KVOptions(kv_bits, kv_group_size, quantized_kv_start),
        prompt_cache_file=prompt_cache_file,
        prompt_cache_dir=prompt_cache_dir,
        disk_cache=_wanted(disk_cache, no_disk_cache),
        prompt=prompt,
        system_prompt=system_prompt,
        prefill_response=prefill_response,
        ignore_chat_template=ignore_chat_template,
        chat_template_config=chat_template_config,
        extra_eos_tokens=extra_eos_token or (),
        context=context,
        force=force,
    )
    options = stream_options(ctx.params) | {"stop": stop or ()}
    wants_statistics = verbose.lower() not in ("false", "f")
    raise typer.Exit(command.run(request, options, verbose=wants_statistics, as_json=as_json))


def chat(
    ctx: typer.Context,
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
    disk_cache: DiskCache = False,
    no_disk_cache: NoDiskCache = False,
    context: Context = None,
    force: Force = False,
    revision: Revision = None,
    as_json: Annotated[bool, typer.Option("--json", help="Answer once, as one JSON object.")] = False,
) -> None:
    """Talk with a model in the terminal, or have a question answered once.

    On a terminal, conversations are saved, and what is computed of them is kept on disk: --no-save and --no-disk-cache
    turn that off. Where stdin is no terminal, what stands on it is answered once.
    """
    _check_combination(ctx)
    if as_json and question is None and sys.stdin is not None and sys.stdin.isatty():
        raise typer.BadParameter('--json needs a question: afmoe-mlx chat --json "…"')
    from ...chat import EngineSource, Request, View, run
    from ..kv_bits import KVOptions

    request = Request(
        model=model if model is None and resume is not None else or_demo(model),
        source=EngineSource(
            revision=revision,
            draft_model=draft_model,
            kv=KVOptions(kv_bits, kv_group_size, quantized_kv_start),
            context=context,
            force=force,
        ),
        options=stream_options(ctx.params),
        question=question,
        as_json=as_json,
        view=View(markdown=not no_markdown),
        system_prompt=system_prompt,
        thinks=not no_think,
        resume=resume,
        saves=not no_save,
        keeps_history=not no_history,
        prompt_cache_dir=prompt_cache_dir,
        disk_cache=_wanted(disk_cache, no_disk_cache),
    )
    raise typer.Exit(run(request))
