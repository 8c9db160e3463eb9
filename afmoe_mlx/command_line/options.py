"""The options that several commands have, as Typer's annotations with their help."""

from typing import Annotated

import typer

MODEL_HELP = "A folder, a short name (see `afmoe-mlx models`) or owner/name on the Hugging Face Hub."
ModelArgument = Annotated[str, typer.Argument(help=MODEL_HELP + " demo is the built-in one.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Model = Annotated[str | None, typer.Option(help=MODEL_HELP + " The built-in demo if not given.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")]
SystemPrompt = Annotated[str | None, typer.Option(help="Put before the conversation by the chat template.")]
Stop = Annotated[list[str] | None, typer.Option(help="A text that ends the answer, not shown; repeatable.")]
ReasoningBudget = Annotated[int | None, typer.Option(metavar="N", help="Close a thought after so many tokens.")]
Temp = Annotated[float | None, typer.Option(help="Sampling temperature; 0 always takes the likeliest token.")]
TopP = Annotated[float | None, typer.Option(help="Draw from the likeliest tokens that make up this share.")]
MinP = Annotated[float | None, typer.Option(help="Leave out tokens less likely than this share of the best.")]
MinTokens = Annotated[int | None, typer.Option(help="Tokens that --min-p leaves at least.")]
TopK = Annotated[int | None, typer.Option(help="Draw from the k likeliest tokens; 0 is off.")]
XtcProbability = Annotated[float | None, typer.Option(help="How often to leave out the top choices.")]
XtcThreshold = Annotated[float | None, typer.Option(help="How likely a top choice is at least.")]
RepetitionPenalty = Annotated[float | None, typer.Option(help="Divide the logits of recent tokens by this.")]
Seed = Annotated[int | None, typer.Option(help="The same seed draws the same answer.")]
Context = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Tokens of conversation that memory must have room for; 4096 if not given."),
]
Force = Annotated[bool, typer.Option("--force", help="Load even what does not fit in memory.")]
PromptLookup = Annotated[
    int | None, typer.Option(help="Guess up to so many tokens a step, 7 if no number follows, from the text so far.")
]
DraftModel = Annotated[str | None, typer.Option(help="A smaller model with the same tokenizer, to guess tokens.")]
KVBits = Annotated[int | None, typer.Option(help="Keep keys and values of full-attention layers in 8 or 4 bits.")]
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
PrefillStepSize = Annotated[int, typer.Option(help="Prompt tokens run at a time.")]
CacheDirectory = Annotated[
    str | None,
    typer.Option("--prompt-cache-dir", "--directory", metavar="DIR", help="Another folder than the default."),
]
