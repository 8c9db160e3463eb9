"""The request of `lora`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

import typer

from ..options import MODEL_HELP, AsJson, Revision


class FineTuneType(StrEnum):
    lora = "lora"
    dora = "dora"
    full = "full"


class OptimizerChoice(StrEnum):
    adam = "adam"
    adamw = "adamw"
    muon = "muon"
    sgd = "sgd"
    adafactor = "adafactor"


def _take_config(context: typer.Context, path: str | None) -> str | None:
    """Make the values of a YAML file the defaults of the command: what is typed wins over them."""
    if path is not None:
        from ..tuning_config import read_tuning_config

        context.default_map = read_tuning_config(path, context)
    return path


def table(given: Any) -> Mapping[str, Any]:
    """A JSON object, or one that is parsed already."""
    try:
        value = json.loads(given) if isinstance(given, str) else given
    except ValueError:
        value = None
    if not isinstance(value, Mapping):
        raise typer.BadParameter(f"{given!r} is no JSON object")
    return value


@dataclass(frozen=True, kw_only=True)
class LoraRequest:
    """Fine-tune a model on examples: an adapter, written beside it. The flags are those of mlx_lm.lora.

    Attention, dense and shared MLPs are trained; routers, which decide the experts that answer, stay as they are.
    """

    model: Annotated[str, typer.Option(help=MODEL_HELP + " demo is the built-in one. Quantized ones stay so.")]
    train: Annotated[bool, typer.Option("--train", help="Train.")] = False
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|NAME",
            help="A folder with train.jsonl and, if there are, valid.jsonl and test.jsonl, or a dataset on the Hub; a"
            " line is {messages}, {prompt, completion} or {text}.",
        ),
    ] = None
    adapter_path: Annotated[str, typer.Option(metavar="DIR", help="The folder to write.")] = "adapters"
    iters: Annotated[int, typer.Option(help="Batches to train on.")] = 1000
    batch_size: Annotated[int, typer.Option(help="Examples in each.")] = 4
    learning_rate: Annotated[float, typer.Option(help="Of the optimizer.")] = 1e-5
    fine_tune_type: Annotated[
        FineTuneType, typer.Option(metavar="NAME", help="lora, dora, or full: all weights of the layers.")
    ] = FineTuneType.lora
    rank: Annotated[int, typer.Option(help="Of each change.")] = 8
    scale: Annotated[float, typer.Option(help="What each change is multiplied by.")] = 20.0
    dropout: Annotated[float, typer.Option(help="Share of its inputs that is left out in training.")] = 0.0
    num_layers: Annotated[int, typer.Option(help="Train the last so many layers; -1: all.")] = -1
    target: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Train these maps instead, such as q_proj or self_attn.q_proj; repeatable."),
    ] = None
    experts: Annotated[bool, typer.Option("--experts", help="Train routed experts too.")] = False
    router: Annotated[bool, typer.Option("--router", help="Train routers too.")] = False
    mask_prompt: Annotated[bool, typer.Option("--mask-prompt", help="Learn the last answer of an example alone.")] = (
        False
    )
    max_seq_length: Annotated[int, typer.Option(help="Tokens of an example that count, the first ones.")] = 2048
    grad_checkpoint: Annotated[
        bool, typer.Option("--grad-checkpoint", help="Compute activations again instead of keeping them: less memory.")
    ] = False
    grad_accumulation_steps: Annotated[int, typer.Option(help="Batches that make one update.")] = 1
    optimizer: Annotated[OptimizerChoice, typer.Option(metavar="NAME", help="adam, adamw, muon, sgd or adafactor.")] = (
        OptimizerChoice.adam
    )
    optimizer_config: Annotated[
        Any | None, typer.Option(parser=table, metavar="JSON", help="Its other options: weight_decay, betas, …")
    ] = None
    lr_schedule: Annotated[
        Any | None,
        typer.Option(parser=table, metavar="JSON", help="name, arguments, warmup, warmup_init, as mlx-lm's."),
    ] = None
    seed: Annotated[int, typer.Option(help="Of the order of examples and of what is drawn.")] = 0
    steps_per_report: Annotated[int, typer.Option(help="Batches between two lines on the loss.")] = 10
    steps_per_eval: Annotated[int, typer.Option(help="Batches between two looks at valid.jsonl.")] = 200
    val_batches: Annotated[int, typer.Option(help="Batches of it each time; -1: all.")] = 25
    save_every: Annotated[int, typer.Option(help="Batches between two savings.")] = 100
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the training in --adapter-path was saved.")] = (
        False
    )
    resume_adapter_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="Begin with an adapter's weights: adapters.safetensors.")
    ] = None
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the adapter in --adapter-path.")] = False
    test: Annotated[bool, typer.Option("--test", help="Take the loss on test.jsonl, after training if any.")] = False
    test_batches: Annotated[int, typer.Option(help="Batches of it; -1: all.")] = 500
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be trained, its memory and its bytes, and leave.")
    ] = False
    force: Annotated[bool, typer.Option("--force", help="Train even what does not fit in memory.")] = False
    config: Annotated[
        str | None,
        typer.Option(
            "--config",
            "-c",
            metavar="FILE",
            is_eager=True,
            callback=_take_config,
            help="Take options from a YAML file, such as mlx_lm.lora's.",
        ),
    ] = None
    revision: Revision = None
    as_json: AsJson = False

    def __post_init__(self) -> None:
        """BadParameter for options that contradict each other, or do nothing without another."""
        if not (self.train or self.test or self.dry_run):
            raise typer.BadParameter("choose --train, --test or --dry-run")
        if self.data is None and (self.train or self.test):
            raise typer.BadParameter("--data is needed: a folder with train.jsonl")
        if self.resume and (self.overwrite or self.resume_adapter_file is not None):
            raise typer.BadParameter(
                "--resume goes on with what is there: choose it, --overwrite or --resume-adapter-file"
            )
        if (self.resume or self.overwrite or self.resume_adapter_file is not None) and not self.train:
            raise typer.BadParameter("--resume, --overwrite and --resume-adapter-file need --train")
        if self.test_batches < -1 or self.test_batches == 0:
            raise typer.BadParameter(f"--test-batches is {self.test_batches}: expected 1 or more, or -1 for all")
        if self.as_json and self.train and not self.dry_run:
            raise typer.BadParameter("--json is for --dry-run and --test: a training writes its losses a line each")
