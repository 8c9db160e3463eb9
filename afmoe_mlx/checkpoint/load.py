"""Loading a checkpoint into a model, a layer at a time."""

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from .. import device
from ..errors import InputError
from ..models import (
    CausalLM,
    ExpertPlacement,
    ModelConfig,
    fuse_layer,
    leave_room,
    make_model,
    read_config,
    stream_layer,
)
from . import files, layouts, verify
from .derived import lazily
from .foreign import translate
from .methods import is_foreign
from .parts import restricted
from .quantized import quantize_modules, read_quantization

if TYPE_CHECKING:
    from .expert_source import LayerExperts

# Says by config and headers which experts are to be in memory; None for all.
PlaceExperts = Callable[[ModelConfig, verify.Headers], ExpertPlacement | None]


def load_model(
    source: str | Path,
    *,
    dtype: mx.Dtype | str | None = None,
    fuse: bool = True,
    revision: str | None = None,
    check: verify.Check | None = None,
    place: PlaceExperts | None = None,
    part: range | None = None,
    adapt: Callable[[CausalLM], None] | None = None,
) -> tuple[CausalLM, ModelConfig]:
    """A model, ready to run, and its config, from a folder, a short name or a Hub id; no tokenizer is needed.

    dtype: of the weights and the computation; by default the checkpoint's, float32 on the CPU. fuse: merge projections
    for inference. revision: a branch, tag or commit on the Hub. check: may refuse a model by its config and headers,
    before weights are fetched or read. place: says by them which experts are to be in memory; without it all are.
    part: layers that are to be loaded alone, with what stands around the layers if they are the first: no others are
    fetched, read or held. adapt: called with the model before anything of it is read, or fused.
    Raises ConfigError, CheckpointError, HubError, and InputError for a dtype or a part there is not.
    """
    from .hub import resolve
    from .hub_part import resolve_part

    wanted, headers = parse_dtype(dtype), None
    if part is None:
        folder = resolve(source, revision=revision, check=check)
    else:
        folder, headers = resolve_part(source, part, revision=revision, check=check)
    streams = device.reading_streams()
    model, stored = _open(folder, dtype=wanted, check=check, streams=streams, headers=headers, part=part)
    placement = None if place is None else place(*restricted(model.config, stored.headers, model.part))
    sources = {} if placement is None else _experts_apart(model, stored, placement)
    if adapt is not None:
        adapt(model)
    is_as_stored = wanted is None and not is_foreign(files.read_config_json(folder))
    read = _read_at_once if len(streams) > 1 and is_as_stored else _read_in_turn
    for module in (model.model.get("embed_tokens"), model.get("lm_head")):
        if module is not None:
            read(module)
    for i, layer in zip(model.part, model.model.layers, strict=True):
        read(layer)
        if fuse:
            fuse_layer(layer)
            read(layer)
        if i in sources:
            stream_layer(model, layer, sources[i])
    read(model)
    mx.clear_cache()
    return model, model.config


def _read_in_turn(module: nn.Module) -> None:
    """Evaluate weights one at a time, so that what each is made of is dropped before the next is read."""
    for array in dict(tree_flatten(module.parameters())).values():
        mx.eval(array)


def _read_at_once(module: nn.Module) -> None:
    """Evaluate weights together, each stream its own: they are made of no more bytes than they have."""
    mx.eval(module.parameters())


def open_model(
    folder: Path,
    *,
    dtype: mx.Dtype | None = None,
    check: verify.Check | None = None,
    streams: "Sequence[device.Stream | None]" = (None,),
) -> CausalLM:
    """The model of a folder, unfused, its weights not yet read: each is when it is first evaluated.

    streams: what reads them; only the thread that made a stream can evaluate what it reads.
    """
    return _open(folder, dtype=dtype, check=check, streams=streams)[0]


@dataclass(frozen=True)
class _Stored:
    """What a model is made of: its parameters' tensors, and their headers."""

    folder: Path
    groups: verify.Groups
    headers: verify.Headers


def _open(
    folder: Path,
    *,
    dtype: mx.Dtype | None,
    check: verify.Check | None,
    streams: "Sequence[device.Stream | None]",
    headers: verify.Headers | None = None,
    part: range | None = None,
) -> tuple[CausalLM, _Stored]:
    """As `open_model`, with what it is made of. headers: of all tensors, where not all files are in the folder."""
    raw = files.read_config_json(folder)
    config = read_config(raw)
    part = _checked(part, config.num_hidden_layers)
    if headers is None:
        headers = files.read_headers(files.find_weights(folder))
    paths = sorted({stored.file for name, stored in headers.items() if layouts.is_in_part(name, part)})
    raw, headers = translate(raw, headers)
    compute_dtype = dtype or device.compute_dtype(files.stored_dtype(headers))
    held = {name: stored for name, stored in headers.items() if layouts.is_in_part(name, part)}
    tensors = lazily(held, files.load_lazily(paths, streams), compute_dtype)
    if config.tie_word_embeddings and _has_own_head(tensors):
        warnings.warn("lm_head.weight is not the embeddings it is tied to: used, as in Transformers", stacklevel=3)
        config = dataclasses.replace(config, tie_word_embeddings=False)
    model, groups = empty_model(folder, raw, config, headers)
    expected = dict(tree_flatten(model.parameters()))
    if check is not None:
        check(*restricted(config, headers, part))
    weights = {
        name: _assemble(name, pieces, tensors, expected[name].shape)
        for name, pieces in groups.items()
        if layouts.is_in_part(name, part)
    }
    model.dtype = compute_dtype
    narrow = {name for name in weights if not _is_wide_bias(name, groups, headers)}
    weights = {name: _cast(name, a, compute_dtype, config) if name in narrow else a for name, a in weights.items()}
    # what is not in the part is dropped as it was made: nothing has been evaluated
    model.update(tree_unflatten(list(weights.items())))
    if len(part) < config.num_hidden_layers:
        model.keep_part(part)
    model.eval()
    return model, _Stored(folder, groups, headers)


def _checked(part: range | None, layers: int) -> range:
    """A part of so many layers, by default all; InputError for what is none."""
    part = range(layers) if part is None else part
    if part.step != 1 or not 0 <= part.start < part.stop <= layers:
        raise InputError(f"part is {part}: expected some of the model's {layers} layers, in a row")
    return part


def _experts_apart(model: CausalLM, stored: _Stored, placement: ExpertPlacement) -> "dict[int, LayerExperts]":
    """Leave room for some experts alone in the layers that read theirs: where from, by the layers' places."""
    from .expert_source import ExpertFiles

    files = ExpertFiles(stored.folder, stored.groups, stored.headers)
    sources = {}
    for i, path in placement.streamed(model).items():
        sources[i] = files.layer(path, model.config.num_experts)
        leave_room(model.layers[i - model.part.start], placement.slots)
    return sources


def empty_model(
    folder: Path, raw: Mapping[str, Any], config: ModelConfig, headers: verify.Headers
) -> tuple[CausalLM, dict[str, list[layouts.Piece]]]:
    """A checkpoint's model before its weights are read, with the stored tensors that each of its parameters is made of.

    raw: the parsed `config.json` that `config` was read from. Modules that are stored quantized are so in the model.
    Raises ConfigError, and CheckpointError if the headers do not fit the config.
    """
    shapes = {name: stored.shape for name, stored in headers.items()}
    groups = layouts.group(shapes, raw["model_type"], tied=config.tie_word_embeddings)
    quantization = read_quantization(raw)
    verify.check_layers(folder, config, len(groups))
    model = make_model(config)
    if quantization is not None:
        quantize_modules(model, quantization, {name: layouts.shape_of(groups[name], shapes) for name in groups})
    verify.check_tensors(folder, dict(tree_flatten(model.parameters())), groups, headers)
    return model, groups


def _has_own_head(tensors: Mapping[str, mx.array]) -> bool:
    """Whether a head is stored that differs from the embeddings; Transformers then ties nothing."""
    head, embeddings = (tensors.get(f"{name}.weight") for name in ("lm_head", "model.embed_tokens"))
    if head is None or embeddings is None or embeddings.dtype == mx.uint32:
        return False
    return not mx.array_equal(head, embeddings).item()


def parse_dtype(dtype: mx.Dtype | str | None) -> mx.Dtype | None:
    """A dtype to compute in, by its name or as it is; InputError for one there is not."""
    accepted = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}
    if isinstance(dtype, str):
        dtype = accepted.get(dtype, dtype)
    if dtype is None or dtype in accepted.values():
        return dtype  # type: ignore[return-value]
    raise InputError(f"dtype is {dtype!r}: expected one of {', '.join(accepted)}")


def _is_wide_bias(name: str, groups: verify.Groups, headers: verify.Headers) -> bool:
    """Whether biases of groups are stored in float32 beside narrower scales: these times zero points are not exact."""
    scales = groups.get(f"{name.removesuffix('.biases')}.scales")
    if not name.endswith(".biases") or not scales:
        return False
    return [headers[pieces[0].stored].dtype == "F32" for pieces in (groups[name], scales)] == [True, False]


def _cast(name: str, array: mx.array, dtype: mx.Dtype, config: ModelConfig) -> mx.array:
    """Floating weights in the model's dtype; norms lose no precision, what shifts a choice of experts has it all."""
    if not mx.issubdtype(array.dtype, mx.floating) or name.endswith("global_scale"):
        return array
    if config.is_float32(name):
        return array.astype(mx.float32)
    cast = array.astype(dtype)
    is_exact = dtype in (mx.float32, array.dtype)
    if name.endswith("norm.weight") and not is_exact and not mx.array_equal(cast.astype(array.dtype), array).item():
        return array
    return cast


def _assemble(
    name: str, pieces: list[layouts.Piece], tensors: Mapping[str, mx.array], shape: tuple[int, ...]
) -> mx.array:
    """One of our parameters from its stored pieces."""
    first = pieces[0]
    if first.expert is not None:
        return mx.stack([tensors[piece.stored] for piece in pieces])
    array = tensors[first.stored]
    if first.half is not None:
        return mx.split(array, 2, axis=-2)[first.half]
    if name.endswith("conv.conv.weight") and array.shape != shape:
        return array.swapaxes(1, 2)
    return array
