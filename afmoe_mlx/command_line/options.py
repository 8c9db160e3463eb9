"""The options that several commands have, as Typer's annotations with their help."""

import re
from typing import Annotated, Any

import typer

# What --prompt-lookup stands for without a number.
AUTO = "auto"
SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([KMGT]?)(I?)B?")
UNITS = ["", "K", "M", "G", "T"]


def guesses(given: str | int) -> int:
    """A number of tokens; True for as many as suit the device."""
    if given is True or given == AUTO:
        return True
    try:
        return int(given)
    except ValueError:
        raise typer.BadParameter(f"{given!r} is no number of tokens") from None


def byte_size(given: str | int) -> int:
    """Bytes, as in 600MB, 2.5G or 1GiB."""
    match = SIZE.fullmatch(str(given).strip().upper())
    if match is None or not (count := round(float(match[1]) * (1024 if match[3] else 1000) ** UNITS.index(match[2]))):
        raise typer.BadParameter(f"{given!r} is no size: expected bytes, such as 600MB or 8GB")
    return count


def experts_in_memory(given: str | int) -> int | str:
    """Bytes, or auto."""
    return AUTO if given == AUTO else byte_size(given)


def _take_preset(context: typer.Context, name: str | None) -> str | None:
    """Make a preset's values the defaults of the command that is being read: what is typed wins over them."""
    if name is not None:
        from .configuration import preset

        context.default_map = preset(name, context)
    return name


MODEL_HELP = "A folder, a short name (see `afmoe-mlx models`) or owner/name on the Hugging Face Hub."
ModelArgument = Annotated[str, typer.Argument(help=MODEL_HELP + " demo is the built-in one.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Model = Annotated[
    str | None, typer.Option(help=MODEL_HELP + " If not given, that of config.toml, or the built-in demo.")
]
Preset = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        is_eager=True,
        callback=_take_preset,
        help="Take options from the table presets.NAME in config.toml.",
    ),
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")]
SystemPrompt = Annotated[str | None, typer.Option(help="Put before the conversation by the chat template.")]
MaxTokens = Annotated[
    int | None,
    typer.Option(
        "--max-tokens",
        "-m",
        help="End an answer after so many tokens, -1 for no limit; by default the model's, 256 or in a chat 2048.",
    ),
]
Stop = Annotated[list[str] | None, typer.Option(help="A text that ends the answer, not shown; repeatable.")]
ExtraEosToken = Annotated[
    list[str] | None, typer.Option(help="Another token that ends it, its text or id; repeatable.")
]
ReasoningBudget = Annotated[int | None, typer.Option(metavar="N", help="Close a thought after so many tokens.")]
Tools = Annotated[
    str | None, typer.Option(metavar="FILE", help="Offer the model these tools: OpenAI's list of them, as JSON.")
]
JsonSchema = Annotated[
    str | None, typer.Option(metavar="FILE|JSON", help="Hold the answer to this JSON schema, after its reasoning.")
]
Regex = Annotated[str | None, typer.Option(help="Hold it to a regular expression, which matches all of it.")]
Grammar = Annotated[str | None, typer.Option(metavar="FILE", help="Hold it to a grammar in Lark's notation.")]
Temp = Annotated[float | None, typer.Option(help="Sampling temperature; 0 always takes the likeliest token.")]
TopP = Annotated[float | None, typer.Option(help="Draw from the likeliest tokens that make up this share.")]
MinP = Annotated[float | None, typer.Option(help="Leave out tokens less likely than this share of the best.")]
MinTokens = Annotated[int | None, typer.Option(help="Tokens that --min-p leaves at least.")]
TopK = Annotated[int | None, typer.Option(help="Draw from the k likeliest tokens; 0 is off.")]
XtcProbability = Annotated[float | None, typer.Option(help="How often to leave out the top choices.")]
XtcThreshold = Annotated[float | None, typer.Option(help="How likely a top choice is at least.")]
RepetitionPenalty = Annotated[float | None, typer.Option(help="Divide the logits of recent tokens by this.")]
RepetitionContextSize = Annotated[int | None, typer.Option(help="Tokens it looks back on; 0: all; 20 if not given.")]
PresencePenalty = Annotated[float | None, typer.Option(help="Take this from the logits of recent tokens.")]
PresenceContextSize = Annotated[int | None, typer.Option(help="Tokens it looks back on, 20; 0: all; -1: the answer.")]
FrequencyPenalty = Annotated[float | None, typer.Option(help="Take this as often as each of them occurs.")]
FrequencyContextSize = Annotated[int | None, typer.Option(help="Tokens it looks back on, 20; 0: all; -1: the answer.")]
NoRepeatNgramSize = Annotated[int | None, typer.Option(help="Never write so many tokens in a row twice; 0 is off.")]
LogitBias = Annotated[
    list[str] | None, typer.Option(metavar="ID=VALUE", help="Add this to a token's logit; repeatable.")
]
Seed = Annotated[int | None, typer.Option(help="The same seed draws the same answer.")]
ChatTemplate = Annotated[
    str | None, typer.Option(metavar="FILE", help="A Jinja file in place of the model's chat template.")
]
ChatTemplateConfig = Annotated[str | None, typer.Option(help="Template variables, a JSON object.")]
Context = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Tokens of conversation that memory must have room for; 4096 if not given."),
]
Force = Annotated[bool, typer.Option("--force", help="Load even what does not fit in memory.")]
PromptLookup = Annotated[
    Any | None,
    typer.Option(
        parser=guesses,
        metavar="[N]",
        help="Guess up to so many tokens a step, what suits the device if no number follows, from the text so far.",
    ),
]
DraftModel = Annotated[str | None, typer.Option(help="A smaller model with the same tokenizer, to guess tokens.")]
ExpertsInMemory = Annotated[
    Any | None,
    typer.Option(
        parser=experts_in_memory,
        metavar="SIZE|auto",
        help="Hold only so much of the experts in memory (auto: what is free) and read the others from the SSD.",
    ),
]
AdapterPath = Annotated[
    list[str] | None,
    typer.Option(metavar="DIR", help="An adapter made by fine-tuning, of mlx-lm or PEFT; several add up."),
]
AdapterScale = Annotated[float | None, typer.Option(help="How much of each --adapter-path counts; 1 if not given.")]
HostsFile = Annotated[
    str | None,
    typer.Option(
        "--hosts",
        metavar="FILE",
        help="Share the model out among the machines of an MLX hostfile, of which this is the first.",
    ),
]
Silence = Annotated[
    float | None,
    typer.Option(min=2, metavar="SECONDS", help="After which a host of --hosts that says nothing is lost; 60."),
]
KVBits = Annotated[int | None, typer.Option(help="Keep keys and values of full-attention layers in 2 to 6 or 8 bits.")]
KVGroupSize = Annotated[int | None, typer.Option(help="Numbers that share a scale, with --kv-bits; 64 if they fit.")]
KVStart = Annotated[
    int | None, typer.Option(help="Tokens before all of them are quantized, with --kv-bits; 0 if not given.")
]
NumDraftTokens = Annotated[
    int | None, typer.Option(help="Tokens that --draft-model guesses a step at most; 3 if not given.")
]
PromptCacheDir = Annotated[
    str | None, typer.Option(help="Keep what is computed of prompts in this folder, and use what is there.")
]
DiskCache = Annotated[bool, typer.Option("--disk-cache", help="Do so in the default folder (see `afmoe-mlx cache`).")]
NoDiskCache = Annotated[bool, typer.Option("--no-disk-cache", help="Never do so, whatever else is given.")]
PrefillStepSize = Annotated[
    int | None, typer.Option(help="Prompt tokens run at a time; 512 if not given, 2048 on Metal where they fit.")
]
CacheDirectory = Annotated[
    str | None,
    typer.Option("--prompt-cache-dir", "--directory", metavar="DIR", help="Another folder than the default."),
]
