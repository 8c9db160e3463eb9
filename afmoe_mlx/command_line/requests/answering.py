"""The requests of `generate` and `chat`."""

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...terminal import is_terminal, note
from ..options import (
    AdapterPath,
    AdapterScale,
    ChatTemplate,
    ChatTemplateConfig,
    Context,
    DiskCache,
    DraftModel,
    ExpertsInMemory,
    ExtraEosToken,
    Force,
    FrequencyContextSize,
    FrequencyPenalty,
    Grammar,
    HostsFile,
    JsonSchema,
    KVBits,
    KVGroupSize,
    KVStart,
    LogitBias,
    MaxTokens,
    MinP,
    MinTokens,
    Model,
    NoDiskCache,
    NoRepeatNgramSize,
    NumDraftTokens,
    PrefillStepSize,
    PresenceContextSize,
    PresencePenalty,
    Preset,
    PromptCacheDir,
    PromptLookup,
    ReasoningBudget,
    Regex,
    RepetitionContextSize,
    RepetitionPenalty,
    Revision,
    Seed,
    Silence,
    Stop,
    SystemPrompt,
    Temp,
    Tools,
    TopK,
    TopP,
    XtcProbability,
    XtcThreshold,
)
from .loading import LoadOptions

if TYPE_CHECKING:
    from ..kv_bits import KVOptions

DEMO_NOTE = "The built-in demo, about this program; a real one: --model trinity-nano (3.5 GB)"  # fits 80 columns

# The options that are handed on to `stream_generate`; one is called otherwise there.
STREAM_OPTIONS = (
    "max_tokens",
    "stop",
    "extra_eos_token",
    "reasoning_budget",
    "json_schema",
    "regex",
    "grammar",
    "temp",
    "top_p",
    "min_p",
    "min_tokens_to_keep",
    "top_k",
    "xtc_probability",
    "xtc_threshold",
    "repetition_penalty",
    "repetition_context_size",
    "presence_penalty",
    "presence_context_size",
    "frequency_penalty",
    "frequency_context_size",
    "no_repeat_ngram_size",
    "logit_bias",
    "seed",
    "prefill_step_size",
    "prompt_lookup",
    "num_draft_tokens",
)
PYTHON_NAMES = {"temp": "temperature"}


def or_demo(model: str | None) -> str:
    """The model to load, with a word on stderr about what its user may not expect: without one, that of config.toml."""
    from ..configuration import default_model

    if model is None and (model := default_model()) is None:
        note(DEMO_NOTE, dim=True)
        return "demo"
    from ...checkpoint.names import caution

    if words := caution(model):
        note(words, dim=True)
    return model


class CacheOptions(LoadOptions):
    """What requests make of their options of keys and values and of the cache on disk.

    They declare these fields themselves, each where --help is to list it.
    """

    kv_bits: int | None
    kv_group_size: int | None
    quantized_kv_start: int | None
    disk_cache: bool
    no_disk_cache: bool

    def check_kv(self) -> None:
        """BadParameter for options that do nothing without another."""
        if self.kv_bits is None and not (self.kv_group_size is None and self.quantized_kv_start is None):
            raise typer.BadParameter("--kv-group-size and --quantized-kv-start need --kv-bits")

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
class AnswerRequest(CacheOptions):
    """What the commands that answer have in common. BadParameter for options that contradict each other."""

    model: Model = None
    preset: Preset = None
    """Whose options are among the others already."""
    max_tokens: MaxTokens = None
    stop: Stop = None
    extra_eos_token: ExtraEosToken = None
    reasoning_budget: ReasoningBudget = None
    json_schema: JsonSchema = None
    regex: Regex = None
    grammar: Grammar = None
    temp: Temp = None
    top_p: TopP = None
    min_p: MinP = None
    min_tokens_to_keep: MinTokens = None
    top_k: TopK = None
    xtc_probability: XtcProbability = None
    xtc_threshold: XtcThreshold = None
    repetition_penalty: RepetitionPenalty = None
    repetition_context_size: RepetitionContextSize = None
    presence_penalty: PresencePenalty = None
    presence_context_size: PresenceContextSize = None
    frequency_penalty: FrequencyPenalty = None
    frequency_context_size: FrequencyContextSize = None
    no_repeat_ngram_size: NoRepeatNgramSize = None
    logit_bias: LogitBias = None
    seed: Seed = None
    system_prompt: SystemPrompt = None
    chat_template: ChatTemplate = None
    chat_template_config: ChatTemplateConfig = None
    prefill_step_size: PrefillStepSize = None
    prompt_lookup: PromptLookup = None
    draft_model: DraftModel = None
    num_draft_tokens: NumDraftTokens = None
    kv_bits: KVBits = None
    kv_group_size: KVGroupSize = None
    quantized_kv_start: KVStart = None
    experts_in_memory: ExpertsInMemory = None
    adapter_path: AdapterPath = None
    adapter_scale: AdapterScale = None
    hosts: HostsFile = None
    silence: Silence = None
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
        self.check_kv()
        self.check_load()
        if sum(given is not None for given in (self.json_schema, self.regex, self.grammar)) > 1:
            raise typer.BadParameter("choose one of --json-schema, --regex and --grammar")

    @property
    def stream_options(self) -> dict[str, Any]:
        """The options of `stream_generate` among these, None where the command line says nothing."""
        from ..constraint import read_schema
        from ..logit_bias import parse_logit_bias
        from ..text_files import read_text

        found = {PYTHON_NAMES.get(name, name): getattr(self, name) for name in STREAM_OPTIONS}
        if self.num_draft_tokens is None:
            del found["num_draft_tokens"]
        if self.logit_bias is not None:
            found["logit_bias"] = parse_logit_bias(self.logit_bias)
        if self.json_schema is not None:
            found["json_schema"] = read_schema(self.json_schema)
        if self.grammar is not None:
            found["grammar"] = read_text(self.grammar, "--grammar")
        return found


@dataclass(frozen=True, kw_only=True)
class GenerateRequest(AnswerRequest):
    """Answer one prompt, or many. What is not set comes from the model's generation_config.json."""

    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="The message to answer; - reads it from stdin.")
    ] = None
    prompts: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Answer many at once: a .jsonl with {prompt} or {messages} a line, and options; - is stdin.",
        ),
    ] = None
    max_rows: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="With --prompts, answers written at once; 16 if not given."),
    ] = None
    prefill_response: Annotated[str | None, typer.Option(help="How the answer begins.")] = None
    ignore_chat_template: Annotated[bool, typer.Option("--ignore-chat-template", help="Use the prompt as is.")] = False
    tools: Tools = None
    tool_choice: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Have this tool called; required: one or several of any; auto: as the model likes; none: offer none.",
        ),
    ] = None
    prompt_cache_file: Annotated[
        str | None,
        typer.Option(help="Continue the conversation saved in this file; if it is not there, save this one."),
    ] = None
    verbose: Annotated[str, typer.Option(help="False: no statistics on stderr.")] = "True"
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object, with statistics, for each prompt.")
    ] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ignore_chat_template and not (self.chat_template is None and self.chat_template_config is None):
            raise typer.BadParameter("--ignore-chat-template leaves nothing to --chat-template and its variables")
        if self.tool_choice is not None and self.tools is None:
            raise typer.BadParameter("--tool-choice needs --tools")
        if self.ignore_chat_template and self.tools is not None:
            raise typer.BadParameter("--ignore-chat-template leaves nothing that could show --tools to the model")
        if (self.prompt is None) == (self.prompts is None):
            raise typer.BadParameter("give a message by --prompt, or a file of several by --prompts")
        if self.prompts is None and self.max_rows is not None:
            raise typer.BadParameter("--max-rows needs --prompts")
        if self.prompts is not None:
            self._check_several()

    def _check_several(self) -> None:
        if not self.as_json:
            raise typer.BadParameter("--prompts needs --json: an object is printed for each answer")
        if self.prompt_cache_file is not None:
            raise typer.BadParameter("--prompt-cache-file is for one prompt: leave it out with --prompts")

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
    tools: Tools = None
    mcp: Annotated[
        str | None, typer.Option(metavar="FILE", help="Offer the tools of the MCP servers in this mcpServers file.")
    ] = None
    allow_tool: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Run this tool of an MCP server without asking; may be given again."),
    ] = None
    no_markdown: Annotated[bool, typer.Option("--no-markdown", help="Show answers as they are written.")] = False
    as_json: Annotated[bool, typer.Option("--json", help="Answer once, as one JSON object.")] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.as_json and self.question is None and is_terminal(sys.stdin):
            raise typer.BadParameter('--json needs a question: afmoe-mlx chat --json "…"')
        if self.allow_tool and self.mcp is None:
            raise typer.BadParameter("--allow-tool needs --mcp")
