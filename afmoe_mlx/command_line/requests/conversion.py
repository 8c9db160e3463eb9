"""The requests of `convert` and `eval`."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import typer

from ..options import MODEL_HELP, AdapterPath, AdapterScale, AsJson, ExpertsInMemory, ModelArgument, Revision
from .loading import AdapterOptions


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
    distil = "distil"
    gptq = "gptq"
    scales = "scales"


@dataclass(frozen=True, kw_only=True)
class ConvertRequest(AdapterOptions):
    """Convert a model to MLX files, quantized with -q or by a recipe. Killed, the same command continues.

    No built-in recipe quantizes routers, which decide the experts that answer.
    """

    hf_path: Annotated[
        str, typer.Option("--hf-path", "--model", help=MODEL_HELP + " demo is the built-in one, quantized already.")
    ]
    mlx_path: Annotated[str, typer.Option(help="The folder to write; it must not exist yet.")] = "mlx_model"
    quantize: Annotated[bool, typer.Option("--quantize", "-q", help="Quantize, to 4 bits by default.")] = False
    q_bits: Annotated[int | None, typer.Option(help="Bits a weight.")] = None
    q_group_size: Annotated[int | None, typer.Option(help="Weights that share a scale.")] = None
    q_mode: Annotated[
        Mode, typer.Option(metavar="NAME", help="Number format of quantized weights: affine, mxfp4, nvfp4 or mxfp8.")
    ] = Mode.affine
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            "--quant-predicate",
            help="Quantize by 4bit, 3bit, 6bit, 8bit, mxfp4, nvfp4, mixed_2_6, mixed_3_4, mixed_3_6, mixed_4_6 or a"
            " TOML file.",
        ),
    ] = None
    calibrate: Annotated[
        str | None,
        typer.Option(
            metavar="[TEXT]",
            help="Choose quantized weights by a text, or a .jsonl with {text} or {messages} a line; a built-in one if"
            " no file follows.",
        ),
    ] = None
    calibration_method: Annotated[
        Method | None,
        typer.Option(
            metavar="NAME",
            help="gptq, the default; scales is quicker; distil goes on to learn from the original, which is best and"
            " takes longest.",
        ),
    ] = None
    calibration_tokens: Annotated[int | None, typer.Option(help="Tokens of the text that are used, at most.")] = None
    calibrate_routed: Annotated[
        bool, typer.Option("--calibrate-routed", help="Each expert sees only the tokens routed to it, to compare.")
    ] = False
    adapter_path: Annotated[
        list[str] | None,
        typer.Option(metavar="DIR", help="Merge an adapter, of mlx-lm or PEFT, into the weights; several add up."),
    ] = None
    adapter_scale: AdapterScale = None
    dtype: Annotated[
        Dtype | None,
        typer.Option(
            metavar="NAME", help="Format of the other weights, float16, bfloat16 or float32; as stored by default."
        ),
    ] = None
    dequantize: Annotated[
        bool, typer.Option("--dequantize", "-d", help="Make plain weights of quantized ones, in the Hub's layout.")
    ] = False
    revision: Revision = None
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace the model at --mlx-path, and give up another unfinished conversion."),
    ] = False
    low_disk: Annotated[
        bool, typer.Option("--low-disk", help="Remove each file fetched from the Hub once it is converted.")
    ] = False
    upload_repo: Annotated[
        str | None, typer.Option(help="Upload the result as owner/name on the Hub, with a model card.")
    ] = None
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be written, from headers alone, and write nothing.")
    ] = False
    verbose: Annotated[bool, typer.Option("--verbose", help="With --dry-run: every tensor on a line.")] = False
    as_json: AsJson = False

    def __post_init__(self) -> None:
        """BadParameter for options that contradict each other, or do nothing without another."""
        self.check_adapters()
        self._check_quantization()
        if self.calibrate is not None and not (self.quantize or self.recipe is not None):
            raise typer.BadParameter("--calibrate needs --quantize or --recipe")
        is_said = self.calibration_method is not None or self.calibration_tokens is not None or self.calibrate_routed
        if self.calibrate is None and is_said:
            options = "--calibration-method, --calibration-tokens and --calibrate-routed"
            raise typer.BadParameter(f"{options} need --calibrate")
        if self.verbose and not self.dry_run:
            raise typer.BadParameter("--verbose needs --dry-run")

    def _check_quantization(self) -> None:
        gives_format = self.q_bits is not None or self.q_group_size is not None or self.q_mode is not Mode.affine
        if (self.quantize or self.recipe is not None) and self.dequantize:
            raise typer.BadParameter("choose --quantize, --recipe or --dequantize, one of them")
        if self.recipe is not None and gives_format:
            raise typer.BadParameter("choose --recipe, or --q-bits, --q-group-size and --q-mode, not both")
        if gives_format and not self.quantize:
            raise typer.BadParameter("--q-bits, --q-group-size and --q-mode need --quantize")


@dataclass(frozen=True, kw_only=True)
class FuseRequest(AdapterOptions):
    """Merge adapters into a model's weights, and write a model. Killed, the same command continues.

    Quantized weights that an adapter changes are quantized anew, each as it was, which rounds them a second time.
    """

    model: Annotated[str, typer.Option(help=MODEL_HELP + " demo is the built-in one.")]
    adapter_path: Annotated[
        list[str] | None,
        typer.Option(metavar="DIR", help="Its adapter, of mlx-lm or PEFT; several add up; adapters if none is given."),
    ] = None
    adapter_scale: AdapterScale = None
    save_path: Annotated[str, typer.Option(help="The folder to write; it must not exist yet.")] = "fused_model"
    original: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="What --model was quantized from, to merge into, and quantize it then as --model is, or by --recipe.",
        ),
    ] = None
    recipe: Annotated[
        str | None, typer.Option(help="Quantize plain weights by 4bit, mixed_3_6, … or a TOML file, as convert does.")
    ] = None
    dequantize: Annotated[
        bool, typer.Option("--dequantize", "--de-quantize", help="Write plain weights, in the Hub's layout.")
    ] = False
    revision: Revision = None
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace the model at --save-path, and give up another unfinished merge."),
    ] = False
    upload_repo: Annotated[
        str | None, typer.Option(help="Upload the result as owner/name on the Hub, with a model card.")
    ] = None
    as_json: AsJson = False

    def __post_init__(self) -> None:
        """BadParameter for options that contradict each other."""
        if self.dequantize and (self.original is not None or self.recipe is not None):
            raise typer.BadParameter("--dequantize makes plain weights of --model's: leave out --original and --recipe")

    def as_conversion(self, model: str) -> ConvertRequest:
        """The conversion that it is, but for a recipe that is another model's; model: a folder or `owner/name`."""
        return ConvertRequest(
            hf_path=self.original or model,
            mlx_path=self.save_path,
            recipe=self.recipe,
            adapter_path=self.adapter_path or ["adapters"],
            adapter_scale=self.adapter_scale,
            dequantize=self.dequantize,
            revision=None if self.original else self.revision,
            overwrite=self.overwrite,
            upload_repo=self.upload_repo,
            as_json=self.as_json,
        )


@dataclass(frozen=True, kw_only=True)
class EvalRequest(AdapterOptions):
    """Measure a model's quality: perplexity, and its distance from a reference."""

    model: ModelArgument
    reference: Annotated[
        str | None, typer.Option(help="What it was quantized from, given likewise, to measure the distance from.")
    ] = None
    text: Annotated[
        str | None,
        typer.Option(help="A text, or a .jsonl with {text} or {messages} a line; a built-in one if not given."),
    ] = None
    sequence_length: Annotated[int, typer.Option(help="Tokens run from an empty context each time.")] = 512
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", "-m", help="Stop after so many of the text.")] = None
    plot: Annotated[str | None, typer.Option(help="Draw it too, against --reference: a .png, .svg or .pdf.")] = None
    tasks: Annotated[
        str | None, typer.Option(help="Run these tasks of lm-evaluation-harness through mlx-lm instead: a,b,…")
    ] = None
    num_shots: Annotated[int | None, typer.Option(min=0, help="Examples in each prompt of --tasks.")] = None
    limit: Annotated[int | None, typer.Option(min=1, help="Questions of each of --tasks.")] = None
    force: Annotated[bool, typer.Option("--force", help="Run --tasks on what does not fit in memory.")] = False
    experts_in_memory: ExpertsInMemory = None
    adapter_path: AdapterPath = None
    adapter_scale: AdapterScale = None
    revision: Revision = None
    as_json: AsJson = False

    def __post_init__(self) -> None:
        """BadParameter for options that contradict each other, or do nothing without another."""
        self.check_adapters()
        if self.tasks is None:
            if self.num_shots is not None or self.limit is not None or self.force:
                raise typer.BadParameter("--num-shots, --limit and --force need --tasks")
            if self.plot is not None and self.reference is None:
                raise typer.BadParameter("--plot needs --reference")
        elif self.experts_in_memory is not None:
            raise typer.BadParameter("--tasks goes without --experts-in-memory: mlx-lm holds the whole model")
        elif self.adapter_path:
            raise typer.BadParameter("--tasks goes without --adapter-path: mlx-lm holds the model")
        elif not (self.reference is None and self.text is None and self.plot is None and self.max_tokens is None):
            raise typer.BadParameter("--tasks goes without --reference, --text, --max-tokens and --plot")
