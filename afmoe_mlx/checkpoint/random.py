"""Models with random weights, for measuring what a real one of the same shape would do.

Weights have Transformers' initial standard deviation, so that activations stay finite and tokens choose different
experts. They are made a layer at a time: peak memory is that of the finished model and about one layer.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from .. import device
from ..errors import ConfigError, InputError
from ..models import CausalLM, ModelConfig, fuse_layer, make_model, read_config
from .quantized import parameters, quantize_all
from .save import save_weights, write_json

STD = 0.02

# For each mode of small floats, which bits of a random word are kept, and the byte of the scale that brings the numbers
# they stand for near STD. Without the highest bit of their exponents, no 8-bit ones are NaN.
FLOAT_MODES = {"mxfp4": (0xFFFFFFFF, 120), "nvfp4": (0xFFFFFFFF, 4), "mxfp8": (0xBFBFBFBF, 122)}

Keys = Iterator[mx.array]


def random_model(
    config: ModelConfig,
    *,
    bits: int | None = None,
    group_size: int = 64,
    mode: str = "affine",
    dtype: mx.Dtype | None = None,
    fuse: bool = True,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> CausalLM:
    """A model of a config with random weights in memory, ready to run; the same for the same arguments.

    bits, group_size and mode: of everything that our converter quantizes, None for nothing. dtype: of the other weights
    and the computation, by default bfloat16, float32 on the CPU. on_progress: called with the layers made and their
    total. Raises InputError for a quantization that there is not.
    """
    model = make_model(config)
    model.dtype = device.compute_dtype(mx.bfloat16) if dtype is None else dtype
    if bits is not None:
        quantize_all(model, _quantization(bits, group_size, mode))
    keys = _keys(seed)
    layers = model.model.layers
    for name, module in (*model.model.items(), *model.items()):
        if isinstance(module, nn.Module) and name != "model" and not name.startswith("_"):
            _fill(module, model.dtype, keys)
    for done, layer in enumerate(layers):
        if on_progress is not None:
            on_progress(done, len(layers))
        _fill(layer, model.dtype, keys)
        if fuse:
            fuse_layer(layer)
            mx.eval(layer.parameters())
        mx.clear_cache()
    if on_progress is not None:
        on_progress(len(layers), len(layers))
    model.set_dtype(model.dtype)
    model.eval()
    return model


def save_random(
    folder: Path,
    raw: Mapping[str, Any],
    *,
    bits: int | None = None,
    group_size: int = 64,
    mode: str = "affine",
    dtype: mx.Dtype = mx.bfloat16,
    seed: int = 0,
) -> Path:
    """Write the `random_model` of a parsed `config.json` as our converter would, without a tokenizer; its folder."""
    options: dict[str, Any] = {"bits": bits, "group_size": group_size, "mode": mode}
    model = random_model(read_config(raw), **options, dtype=dtype, fuse=False, seed=seed)
    written = dict(raw) | {"torch_dtype": str(dtype).removeprefix("mlx.core.")}
    if bits is not None:
        written |= {"quantization": options, "quantization_config": options}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", written)
    weights = dict(tree_flatten(model.parameters()))
    save_weights(folder, {n: a.astype(dtype) if n.endswith("norm.weight") else a for n, a in weights.items()})
    return folder


def _quantization(bits: int, group_size: int, mode: str) -> dict[str, Any]:
    try:
        return parameters({"bits": bits, "group_size": group_size, "mode": mode})
    except ConfigError as error:
        raise InputError(str(error).removeprefix("config: quantization.")) from None


def _keys(seed: int) -> Keys:
    """Random keys without end, from no global state."""
    key = mx.random.key(seed)
    while True:
        key, own = mx.random.split(key)
        yield own


def _fill(module: nn.Module, dtype: mx.Dtype, keys: Keys) -> None:
    """Give a module random weights in place, each evaluated at once; those it has are never computed."""
    for _, part in module.named_modules():
        if "scales" in part:
            _fill_quantized(part, dtype, next(keys))
            continue
        for name, array in part.items():
            if isinstance(array, mx.array) and not name.startswith("_"):
                part[name] = _floats(name, array.shape, dtype, next(keys))
                mx.eval(part[name])


def _floats(name: str, shape: tuple[int, ...], dtype: mx.Dtype, key: mx.array) -> mx.array:
    if name == "weight" and len(shape) == 1:
        return mx.ones(shape, dtype)  # a norm's
    kept = mx.float32 if name == "expert_bias" else dtype
    return _uniform(shape, kept, key)


def _uniform(shape: tuple[int, ...], dtype: mx.Dtype, key: mx.array) -> mx.array:
    bound = STD * math.sqrt(3)
    return mx.random.uniform(-bound, bound, shape, dtype=dtype, key=key)


def _fill_quantized(module: Any, dtype: mx.Dtype, key: mx.array) -> None:
    """Give a quantized module random words in place: as numbers they have the standard deviation of the others."""
    if module.mode == "affine":
        # any word is a row of integers 0 to 2^bits - 1, made symmetric by the biases
        step = STD / math.sqrt((4**module.bits - 1) / 12)
        module.weight = _words(module.weight.shape, key)
        module.biases = mx.full(module.scales.shape, -step * (2**module.bits - 1) / 2, dtype)
        module.scales = mx.full(module.scales.shape, step, dtype)
        mx.eval(module.weight, module.scales, module.biases)
        return
    mask, scale = FLOAT_MODES[module.mode]
    module.weight = _words(module.weight.shape, key) & mask
    module.scales = mx.full(module.scales.shape, scale, mx.uint8)
    mx.eval(module.weight, module.scales)


def _words(shape: tuple[int, ...], key: mx.array) -> mx.array:
    """Random uint32 of all 32 bits: what keys are made of, while `randint` draws no more than 24."""
    count = math.prod(shape)
    return mx.random.split(key, -(-count // 2)).reshape(-1)[:count].reshape(shape)
