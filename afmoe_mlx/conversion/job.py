"""`Job`: all that a conversion will do, from a source's config and headers alone; `Options`: what was asked for."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx
from mlx.utils import tree_flatten

from ..checkpoint.files import StoredTensor, read_config_json, stored_dtype
from ..checkpoint.foreign import translate
from ..checkpoint.layouts import Piece
from ..checkpoint.load import empty_model
from ..checkpoint.methods import is_foreign
from ..checkpoint.quantized import read_quantization
from ..checkpoint.save import SHARD_BYTES
from ..errors import ConfigError, ConversionError
from ..models import CausalLM, ModelConfig, make_model, read_config
from .config_json import config_json
from .encoder import FIXED, Encoder, PlainEncoder, join
from .hub_layout import hub_tensors
from .plan import Plan, make_plan
from .recipe import Format, Recipe, formats_in, quantization_of, uniform
from .recipes import read_recipe
from .source import Source
from .stored import MergedParameter, Parameter, SourceReader, StoredWeights, parameters_of

DTYPES = {"float16": mx.float16, "bfloat16": mx.bfloat16, "float32": mx.float32}
HEAD, EMBEDDINGS = "lm_head.weight", "model.embed_tokens.weight"
FINAL_NORMS = ("model.norm.weight", "model.embedding_norm.weight")
COMPARED_ROWS = 4096


@dataclass(frozen=True)
class Options:
    """Options of a conversion, as in `afmoe_mlx.convert`. Raises ConversionError for invalid ones."""

    quantize: bool = True
    bits: int | None = None
    group_size: int | None = None
    mode: str = "affine"
    recipe: str | Recipe | None = None
    dtype: str | None = None
    dequantize: bool = False
    shard_bytes: int = SHARD_BYTES

    def __post_init__(self) -> None:
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ConversionError(f"dtype is {self.dtype!r}: expected one of {', '.join(DTYPES)}")
        if self.recipe is not None and self._gives_format:
            raise ConversionError("recipe and bits, group_size or mode are given: expected one or the other")
        if self.recipe is not None and self.dequantize:
            raise ConversionError("recipe and dequantize are given: expected one or the other")
        self.chosen_recipe()

    @property
    def names_format(self) -> bool:
        """Whether it is said how to quantize, rather than left to the defaults."""
        return self._gives_format or self.recipe is not None

    @property
    def _gives_format(self) -> bool:
        return self.bits is not None or self.group_size is not None or self.mode != "affine"

    @property
    def quantizes(self) -> bool:
        return (self.quantize or self.recipe is not None) and not self.dequantize

    def chosen_recipe(self) -> Recipe | None:
        """How weights are quantized; None for not at all."""
        if not self.quantizes:
            return None
        if isinstance(self.recipe, str):
            return read_recipe(self.recipe)
        if self.recipe is not None:
            return self.recipe
        values = {"bits": self.bits, "group_size": self.group_size, "mode": self.mode}
        try:
            return uniform("uniform", values)
        except ConfigError as error:
            raise ConversionError(str(error).removeprefix("config: quantization.")) from None


@dataclass(frozen=True)
class Job:
    """All that a conversion does."""

    options: Options
    """As they apply to the source."""
    config: ModelConfig
    quantization: Mapping[str, Any] | None
    """Of the source, in MLX's terms."""
    parameters: Mapping[str, Parameter]
    """Of the model, as the source has them."""
    formats: Mapping[str, Format | None]
    """Of what is quantized now, by module; None stays as it is."""
    encoder: PlainEncoder
    """What makes the output's tensors where nothing is calibrated."""
    plan: Plan
    config_json: Mapping[str, Any]
    """What `config.json` will hold."""


MakeEncoder = Callable[[Job, Source, Path], Encoder]
"""What makes another encoder for a job and its source, with a folder for files of its own."""


class Adapters(Protocol):
    """Adapters that are merged into the weights as these are read.

    identity: a line that changes when they do. files: those that they are read from.
    """

    @property
    def identity(self) -> str: ...
    @property
    def files(self) -> Sequence[Path]: ...

    def merged(self, model: CausalLM, parameters: Mapping[str, Parameter]) -> dict[str, Parameter]:
        """A model's parameters with those that adapters change plain, and computed from what is stored of them.

        model: whose weights are not read, and which is of no use afterwards. AdapterError for what does not fit it.
        """

    def check_unchanged(self) -> None:
        """SourceChangedError if they are not what they were at first."""


def make_job(source: Source, options: Options, adapters: Adapters | None = None) -> Job:
    """The job that a source and options make; no weights are read, but those of a head that may be tied.

    Where adapters are merged into quantized weights, these are quantized anew, each as it was; the others stay.

    Raises ConversionError if the source is not what the options are for, and the errors of reading a checkpoint.
    """
    raw = read_config_json(source.folder)
    foreign = is_foreign(raw)
    raw, headers = translate(raw, source.headers, keep=not (options.names_format or options.dequantize))
    stored = read_quantization(raw)
    if foreign and stored is not None:  # its codes stay as they are
        options = replace(options, quantize=False)
    if options.quantizes and stored is not None:
        raise ConversionError(f"{source.folder}: is quantized already: convert the original, or --dequantize it first")
    if options.dequantize and stored is None and not foreign:
        raise ConversionError(f"{source.folder}: is not quantized: nothing to dequantize")
    config = stored_config(source, raw, headers)
    model, groups = empty_model(source.folder, raw, config, headers)
    shapes = {name: array.shape for name, array in dict(tree_flatten(model.parameters())).items()}
    parameters = parameters_of(groups, headers, shapes)
    formats, stored_formats = _formats(config, options), formats_in(model)
    if adapters is not None:
        parameters = adapters.merged(model, parameters)
        merged = {path: chosen for path, chosen in stored_formats.items() if f"{path}.scales" not in parameters}
        stored_formats = {path: chosen for path, chosen in stored_formats.items() if path not in merged}
        if not options.dequantize:
            _check_formats(source, parameters, merged)
            formats |= merged
    if options.quantizes and not any(formats.values()):
        why = "the recipe keeps all weights, or its groups divide the rows of none"
        warnings.warn(f"nothing is quantized: {why}: see --dry-run", stacklevel=3)
    encoder = PlainEncoder(
        formats,
        stored=stored_formats if options.dequantize else None,
        dtype=DTYPES[options.dtype] if options.dtype else stored_dtype(headers) if foreign else None,
        # what was computed becomes as the model is; zero points have the precision that they need
        fixed=FIXED if options.dtype else (*FIXED, "biases"),
    )
    layout = partial(hub_tensors, model_type=raw["model_type"]) if options.dequantize else None
    plan = make_plan(parameters, encoder, shard_bytes=options.shard_bytes, layout=layout)
    quantization = None if options.dequantize else quantization_of(formats) if options.quantizes else stored
    norm = next(tensor for name, tensor in plan.tensors.items() if name in FINAL_NORMS)
    dtype = str(norm.dtype).removeprefix("mlx.core.")
    written = config_json(raw, config, quantization, dtype, for_hub=options.dequantize)
    return Job(options, config, stored, parameters, formats, encoder, plan, written)


def stored_config(source: Source, raw: Mapping[str, Any], headers: Mapping[str, StoredTensor]) -> ModelConfig:
    """The config of the model that is stored: a head that differs from the embeddings it is tied to counts.

    headers: of the source, in MLX's terms.
    """
    config = read_config(raw)
    if config.tie_word_embeddings and _has_own_head(source, headers):
        warnings.warn("lm_head.weight is not the embeddings it is tied to: used, as in Transformers", stacklevel=4)
        return replace(config, tie_word_embeddings=False)
    return config


def _has_own_head(source: Source, headers: Mapping[str, StoredTensor]) -> bool:
    """As in `checkpoint.load`, but compared some rows at a time."""
    if HEAD not in headers or EMBEDDINGS not in headers or headers[EMBEDDINGS].dtype == "U32":
        return False
    shape = headers[HEAD].shape
    if shape != headers[EMBEDDINGS].shape:
        return True
    names = (HEAD, EMBEDDINGS)
    groups = {name: [Piece(name)] for name in names}
    reader = SourceReader(source, parameters_of(groups, headers, dict.fromkeys(names, shape)))
    weights = StoredWeights(reader, names)
    try:
        for start in range(0, shape[0], COMPARED_ROWS):
            rows = slice(start, min(start + COMPARED_ROWS, shape[0]))
            if not mx.array_equal(weights.rows(HEAD, rows), weights.rows(EMBEDDINGS, rows)).item():
                return True
        return False
    finally:
        reader.close()


def _check_formats(source: Source, parameters: Mapping[str, Parameter], merged: Iterable[str]) -> None:
    """ConversionError for merged weights that cannot be quantized as they were."""
    for path in merged:
        parameter = parameters[join(path, "weight")]
        if isinstance(parameter, MergedParameter) and "global_scale" in parameter.parts:
            found = f"{source.folder}: {path} has a global scale, with which nothing is quantized anew"
            raise ConversionError(f"{found}: merge the adapter into the original, or pass --dequantize")


def _formats(config: ModelConfig, options: Options) -> dict[str, Format | None]:
    """The format of every module that holds a weight, by the recipe."""
    recipe = options.chosen_recipe()
    if recipe is None:
        return {}
    parameters = dict(tree_flatten(make_model(config).parameters()))
    return recipe.formats({name.removesuffix(".weight"): array.shape for name, array in parameters.items()})
