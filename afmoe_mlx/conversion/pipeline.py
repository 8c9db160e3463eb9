"""From a Hub checkpoint to MLX files, quantized or not, that load here, in mlx-lm and in LM Studio."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map_with_path

from ..checkpoint import names, open_model, resolve
from ..checkpoint.files import read_config_json
from ..checkpoint.quantized import parameters, quantize_all, read_quantization
from ..checkpoint.save import copy_companions, new_folder, save_weights, write_json
from ..errors import ConfigError, ConversionError
from ..models import CausalLM, ModelConfig

DTYPES = {"float16": mx.float16, "bfloat16": mx.bfloat16, "float32": mx.float32}

# Keys of the source's config that say nothing of what is written, or what others say better.
DROPPED = ("_name_or_path", "auto_map", "quantization", "quantization_config", "dtype", "torch_dtype", "full_attn_idxs")


def convert(
    source: str | Path,
    destination: str | Path = "mlx_model",
    *,
    quantize: bool = True,
    bits: int | None = None,
    group_size: int | None = None,
    mode: str = "affine",
    dtype: str | None = None,
    dequantize: bool = False,
    revision: str | None = None,
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the model of a folder, short name or Hub id as MLX files, and return their folder.

    bits and group_size default to what `mode` (affine, mxfp4, nvfp4, mxfp8) has: 4 and 64 for affine. dtype: of what is
    not quantized, by default as stored. dequantize: write plain weights from quantized ones instead. Routers and
    `expert_bias` are never quantized. on_progress: called with the bytes computed and their total.
    Raises ConversionError, and the errors of reading a checkpoint.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ConversionError(f"dtype is {dtype!r}: expected one of {', '.join(DTYPES)}")
    quantize = quantize and not dequantize
    try:
        chosen = parameters({"bits": bits, "group_size": group_size, "mode": mode}) if quantize else None
    except ConfigError as error:
        raise ConversionError(str(error).removeprefix("config: quantization.")) from None
    target = Path(destination).expanduser()
    with new_folder(target, overwrite=overwrite) as folder:
        origin = resolve(published(source), revision=revision)
        raw = read_config_json(origin)
        stored = read_quantization(raw)
        if quantize and stored is not None:
            raise ConversionError(f"{origin}: is quantized already: convert the original, or --dequantize it first")
        if dequantize and stored is None:
            raise ConversionError(f"{origin}: is not quantized: nothing to dequantize")
        model = open_model(origin, keep_dtypes=True)
        if dequantize:
            dequantize_modules(model)
        if dtype is not None:
            _set_dtype(model, DTYPES[dtype])
        if chosen is not None:
            quantize_all(model, chosen)
        quantization = None if dequantize else chosen or stored
        _save(model, raw, quantization, origin, folder, on_progress)
    return target


def _save(
    model: CausalLM,
    raw: Mapping[str, Any],
    quantization: Mapping[str, Any] | None,
    origin: Path,
    folder: Path,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    weights = dict(tree_flatten(model.parameters()))
    write_json(folder / "config.json", config_json(raw, model.config, quantization, _dtype_name(weights)))
    copy_companions(origin, folder)
    save_weights(folder, weights, on_progress=on_progress)


def published(source: str | Path) -> str | Path:
    """What a short name was published as, since its ready conversion is no source for another; else `source` itself."""
    row = names.find(source) if isinstance(source, str) and not Path(source).exists() else None
    return row.source if row else source


def dequantize_modules(model: CausalLM) -> None:
    """Give every quantized module of a model the plain weights it stands for, in place."""
    for _, module in model.named_modules():
        if "scales" not in module:
            continue
        module.weight = dequantized(module)
        for key in ("scales", "biases", "global_scale"):
            module.pop(key, None)


def dequantized(module: Any) -> mx.array:
    """The plain weights of a quantized module."""
    options = {"group_size": module.group_size, "bits": module.bits, "mode": module.mode}
    if "global_scale" not in module:
        return mx.dequantize(module.weight, module.scales, module.get("biases"), **options)
    parts = zip(module.weight, module.scales, module.global_scale, strict=True)
    return mx.stack([mx.dequantize(w, scales, None, **options, global_scale=scale) for w, scales, scale in parts])


def _set_dtype(model: CausalLM, dtype: mx.Dtype) -> None:
    def cast(array: mx.array) -> mx.array:
        return array.astype(dtype) if mx.issubdtype(array.dtype, mx.floating) else array

    kept = ("expert_bias", "global_scale")
    model.update(tree_map_with_path(lambda path, a: a if path.endswith(kept) else cast(a), model.parameters()))


def _dtype_name(weights: Mapping[str, mx.array]) -> str:
    """The dtype of what is not quantized, as a config names it: that of the final layer's norm."""
    name = next(name for name in weights if name in ("model.norm.weight", "model.embedding_norm.weight"))
    return str(weights[name].dtype).removeprefix("mlx.core.")


def config_json(
    raw: Mapping[str, Any], config: ModelConfig, quantization: Mapping[str, Any] | None, dtype: str
) -> dict[str, Any]:
    """The `config.json` to write: the source's, with every default written out and RoPE in both spellings.

    Other readers have other defaults, and mlx-lm knows only the older spelling.
    """
    written = {key: value for key, value in raw.items() if key not in DROPPED}
    own = {field.name: getattr(config, field.name) for field in fields(config) if field.name != "rope"}
    written |= {key: list(value) if isinstance(value, tuple) else value for key, value in own.items()}
    rope = _rope_json(config)
    theta = rope["rope_theta"]
    scaling = None if rope["rope_type"] == "default" else {k: v for k, v in rope.items() if k != "rope_theta"}
    written |= {"rope_parameters": rope, "rope_theta": theta, "rope_scaling": scaling, "torch_dtype": dtype}
    if quantization is not None:
        written |= {"quantization": dict(quantization), "quantization_config": dict(quantization)}
    return dict(sorted(written.items()))


def _rope_json(config: ModelConfig) -> dict[str, Any]:
    rope = config.rope
    used = {
        "default": ("rope_theta",),
        "linear": ("rope_theta", "factor"),
        "llama3": (
            "rope_theta",
            "factor",
            "low_freq_factor",
            "high_freq_factor",
            "original_max_position_embeddings",
        ),
        "yarn": (
            "rope_theta",
            "factor",
            "original_max_position_embeddings",
            "beta_fast",
            "beta_slow",
            "attention_factor",
            "mscale",
            "mscale_all_dim",
            "truncate",
        ),
    }[rope.rope_type]
    values = {key: getattr(rope, key) for key in used}
    return {"rope_type": rope.rope_type} | {key: value for key, value in values.items() if value is not None}
