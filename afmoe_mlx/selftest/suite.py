"""All checks of the self-test: operations, models in every form, and every way of feeding them."""

from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path

import mlx.core as mx

from .. import device
from ..checkpoint.quantized import MODES
from ..models import CausalLM
from . import feeding
from .check import Check
from .limits import DTYPES, difference, kernel_limit, model_limit
from .models import CONFIGS, TinyModel, text
from .operations import Operation, operations
from .twin import ALL_WAYS, KEY_BITS, Twin, logits_of, result_of

# Logits (n, vocab) of Transformers at every fourth position of each model's text; a script among the tests makes them.
GOLDENS = Path(__file__).parent / "goldens.safetensors"
GOLDEN_STEP = 4

WAYS = {
    "in one shot": feeding.one_shot,
    "rewound": feeding.rewound,
    "from a prefix store": feeding.from_store,
    "a padded batch": feeding.padded_batch,
    "speculative decoding": feeding.speculated,
}

Limit = Callable[..., float]
Load = Callable[[], CausalLM]


def checks(*, is_tf32: bool = False) -> Iterator[Check]:
    """Every check, in the order in which to make them; is_tf32: whether the device multiplies float32 so."""
    for name in CONFIGS:
        # what the others stand on
        yield Check(f"{name}: the CPU and Transformers", "float32", model_limit("float32"), partial(_golden, name))
    for operation in operations():
        for dtype in operation.dtypes:
            limit, measure = kernel_limit(dtype, is_tf32=is_tf32), partial(_operation, operation, dtype)
            is_optional = _is_optional(operation.mode)
            yield Check(operation.name, dtype, limit, measure, _no_use(dtype, operation.mode), is_optional)
    for name in CONFIGS:
        yield from _model(TinyModel(name), partial(model_limit, is_tf32=is_tf32))


def _model(tiny: TinyModel, limit: Limit) -> Iterator[Check]:
    """One model in every dtype; of each architecture one with quantized weights, too, and fed in every way."""
    is_whole = tiny.name in ALL_WAYS
    for mode in (None, *MODES) if is_whole else (None,):
        for dtype in DTYPES:
            load = partial(tiny.loaded, DTYPES[dtype], mode)
            measure = partial(_fed, load, feeding.chunks_and_steps, logits_of(tiny.name, mode))
            name = f"{tiny.name}: {_weights(mode)}, in chunks and steps"
            yield Check(name, dtype, limit(dtype), measure, _no_use(dtype, mode), _is_optional(mode))
    for dtype in dict.fromkeys(("float32", _usual_dtype())) if is_whole else ():
        yield from _ways(tiny, dtype, partial(limit, dtype))


def _ways(tiny: TinyModel, dtype: str, limit: Limit) -> Iterator[Check]:
    """The ways of feeding a model, and its other forms."""
    load = cache(partial(tiny.loaded, DTYPES[dtype]))
    expected = logits_of(tiny.name)
    for way, feed in WAYS.items():
        yield Check(f"{tiny.name}: {way}", dtype, limit(), partial(_fed, load, feed, expected))
    for bits in KEY_BITS:
        measure = partial(_fed, load, feeding.quantized_keys(bits), logits_of(tiny.name, None, bits))
        yield Check(f"{tiny.name}: keys in {bits} bits", dtype, limit(key_bits=bits), measure)
    skipped = "no model's decoding is compiled on the CPU, where a kernel takes seconds" if device.is_cpu() else None
    measure = partial(_fed, load, feeding.uncompiled, expected)
    yield Check(f"{tiny.name}: not compiled", dtype, limit(), measure, skipped)
    for mode in (None, "affine"):
        unfused = partial(tiny.loaded, DTYPES[dtype], mode, fused=False)
        measure = partial(_fed, unfused, feeding.chunks_and_steps, logits_of(tiny.name, mode))
        yield Check(f"{tiny.name}: {_weights(mode)}, not fused", dtype, limit(), measure)


def _golden(name: str, twin: Twin) -> float:
    goldens: dict[str, mx.array] = mx.load(str(GOLDENS))  # type: ignore[assignment]
    return difference(twin[logits_of(name)][::GOLDEN_STEP], goldens[name])


def _operation(operation: Operation, dtype: str, twin: Twin) -> float:
    found = operation.on_device(dtype)
    return max(difference(array, twin[result_of(operation.name, i)]) for i, array in enumerate(found))


def _fed(load: Load, feed: feeding.Feeding, expected: str, twin: Twin) -> float:
    parts = feed(load(), text())
    wanted = [twin[expected][first : first + len(logits)] for first, logits in parts]
    return difference(mx.concatenate([logits for _, logits in parts]), mx.concatenate(wanted))


def _weights(mode: str | None) -> str:
    return mode or "unquantized"


def _usual_dtype() -> str:
    """The dtype that models published in bfloat16 compute in on this device."""
    return next(name for name, dtype in DTYPES.items() if dtype == device.compute_dtype(mx.bfloat16))


def _no_use(dtype: str, mode: str | None) -> str | None:
    """Why quantized weights are not checked in a dtype, if they are not."""
    if mode is None or device.compute_dtype(DTYPES[dtype]) == DTYPES[dtype]:
        return None
    return f"models compute in float32 on the CPU, which would sum these products in {dtype}"


def _is_optional(mode: str | None) -> bool:
    """Whether a device need not have it: a GPU not every number format, the CPU no dtype but float32."""
    return device.is_cpu() or mode not in (None, "affine")
