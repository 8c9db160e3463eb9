"""The requests of `generate` and `chat`."""

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

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
    ReasoningBudget,
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

if TYPE_CHECKING:
    from ..kv_bits import KVOptions

DEMO_NOTE = "The built-in demo, about this program; a real one: --model trinity-nano (3.5 GB)"  # fits 80 columns

# What `stream_generate` calls the options that are handed on to it.
STREAM_OPTIONS = {
    "max_tokens": "max_tokens",
    "reasoning_budget": "reasoning_budget",
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


@dataclass(frozen=True, kw_only=True)
class AnswerRequest:
    """What the commands that answer have in common. BadParameter for options that contradict each other."""

    model: Model = None
    max_tokens: int | None = None  # each has its own default and help
    reasoning_budget: ReasoningBudget = None
    temp: Temp = None
    top_p: TopP = None
    min_p: MinP = None
    top_k: TopK = None
    repetition_penalty: RepetitionPenalty = None
    seed: Seed = None
    system_prompt: SystemPrompt = None
    prompt_lookup: PromptLookup = None
    draft_model: DraftModel = None
    num_draft_tokens: NumDraftTokens = None
    kv_bits: KVBits = None
    kv_group_size: KVGroupSize = None
    quantized_kv_start: KVStart = None
    prompt_cache_dir: PromptCacheDir = None
    disk_cache: DiskCache = False
    no_disk_cache: NoDiskCache = False
    context: Context = None
    force: Force = False
    revision: Revision = None

    def __post_init__(self) -> None:
        if self.prompt_lookup is not None and self.draft_model is not None:
            raise typer.BadParameter("choose --prompt-lookup or --draft-model, not both")
        if self.draft_model is None and self.num_draft_tokens is not None:
            raise typer.BadParameter("--num-draft-tokens needs --draft-model")
        if self.kv_bits is None and not (self.kv_group_size is None and self.quantized_kv_start is None):
            raise typer.BadParameter("--kv-group-size and --quantized-kv-start need --kv-bits")

    @property
    def stream_options(self) -> dict[str, Any]:
        """The options of `stream_generate` among these, None where the command line says nothing."""
        found = {STREAM_OPTIONS[name]: value for name, value in vars(self).items() if name in STREAM_OPTIONS}
        if self.num_draft_tokens is None:
            del found["num_draft_tokens"]
        return found

    @property
    def kv(self) -> "KVOptions":
        """How keys and values are kept."""
        from ..kv_bits import KVOptions

        return KVOptions(self.kv_bits, self.kv_group_size, self.quantized_kv_start or 0)

    @property
    def wants_disk_cache(self) -> bool | None:
        """What --disk-cache and --no-disk-cache say together: no, whatever else is said; None for neither."""
        return False if self.no_disk_cache else self.disk_cache or None


@dataclass(frozen=True, kw_only=True)
class GenerateRequest(AnswerRequest):
    """Answer one prompt. What is not set comes from the model's generation_config.json."""

    prompt: Annotated[str, typer.Option("--prompt", "-p", help="The message to answer; - reads it from stdin.")]
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-m", help="End the answer after so many tokens.")] = 256
    min_tokens_to_keep: MinTokens = None
    xtc_probability: XtcProbability = None
    xtc_threshold: XtcThreshold = None
    stop: Stop = None
    extra_eos_token: Annotated[list[str] | None, typer.Option(help="Another token that ends it; repeatable.")] = None
    prefill_response: Annotated[str | None, typer.Option(help="How the answer begins.")] = None
    ignore_chat_template: Annotated[bool, typer.Option("--ignore-chat-template", help="Use the prompt as is.")] = False
    chat_template_config: Annotated[str | None, typer.Option(help="Template variables, a JSON object.")] = None
    prefill_step_size: PrefillStepSize = 512
    prompt_cache_file: Annotated[
        str | None,
        typer.Option(help="Continue the conversation saved in this file; if it is not there, save this one."),
    ] = None
    verbose: Annotated[str, typer.Option(help="False: no statistics on stderr.")] = "True"
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, with statistics.")] = False

    @property
    def wants_statistics(self) -> bool:
        return self.verbose.lower() not in ("false", "f")


@dataclass(frozen=True, kw_only=True)
class ChatRequest(AnswerRequest):
    """Talk with a model in the terminal, or have a question answered once.

    On a terminal, conversations are saved, and what is computed of them is kept on disk: --no-save and --no-disk-cache
    turn that off. Where stdin is no terminal, what stands on it is answered once.
    """

    question: Annotated[
        str | None, typer.Argument(help="Answer this and leave; what stands on stdin is put before it.")
    ] = None
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", "-m", help="End an answer after so many tokens; 2048 if not given.")
    ] = None
    no_think: Annotated[
        bool, typer.Option("--no-think", help="Answer without reasoning first, if the model's template can say so.")
    ] = False
    resume: Annotated[
        str | None,
        typer.Option(metavar="[NAME]", help="Go on with a saved conversation; the last one if no name follows."),
    ] = None
    """"": the last one, as the command line's parser makes of the bare option; None: a new one."""
    no_save: Annotated[bool, typer.Option("--no-save", help="Do not save the conversation.")] = False
    no_history: Annotated[bool, typer.Option("--no-history", help="Do not keep what is typed for the next run.")] = (
        False
    )
    no_markdown: Annotated[bool, typer.Option("--no-markdown", help="Show answers as they are written.")] = False
    as_json: Annotated[bool, typer.Option("--json", help="Answer once, as one JSON object.")] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.as_json and self.question is None and sys.stdin is not None and sys.stdin.isatty():
            raise typer.BadParameter('--json needs a question: afmoe-mlx chat --json "…"')
