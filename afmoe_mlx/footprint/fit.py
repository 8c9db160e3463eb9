"""The fit check: whether a model fits this machine's memory, before weights are read, and what would fit instead."""

from collections.abc import Iterator
from dataclasses import replace

import mlx.core as mx

from .. import device
from ..cache import KVQuantization
from ..cache.quantized import GROUP_SIZES
from ..checkpoint.derived import DerivedTensor
from ..checkpoint.load import PlaceExperts
from ..checkpoint.verify import Check
from ..errors import FitError, InputError
from ..models import ExpertPlacement, ModelConfig
from ..terminal import size
from .cache import layer_caches
from .experts import AUTO_SHARE, SSD_SPEEDS, ExpertMemory, ExpertsInMemory, check_experts_in_memory
from .footprint import CountAdapters, Footprint
from .macs import TYPICAL_BANDWIDTH, stated_bandwidth
from .weights import Headers

# Tokens of conversation to have room for, unless more are asked for.
DEFAULT_CONTEXT = 4096

# What a model may be converted to, and its keys kept in; and the shortest context worth proposing.
BITS = (4, 3)
KV_BITS = (8, 4)
SHORTEST = 1024


def fit_check(
    name: str,
    *,
    context: int | None = None,
    dtype: mx.Dtype | None = None,
    rows: int = 1,
    kv_quantization: KVQuantization | None = None,
    experts_in_memory: ExpertsInMemory = None,
    adapters: CountAdapters | None = None,
    advice: str | None = None,
) -> Check:
    """A check for `resolve` and `load_model`: FitError unless the model and a cache of `context` tokens a row fit.

    name: the model's, for the message. context: at most the model's own counts. dtype: what it is to be loaded in.
    kv_quantization: how its caches are to keep keys and values; the check raises InputError if its heads do not allow
    that. experts_in_memory: bytes for experts, "auto", or None for all of them. adapters: what there is beside the
    weights. advice: what to do where it does not fit, in place of what would and `--force`. Where this device does not
    tell its memory, everything fits. Raises InputError for a context below 1.
    """
    check_context(context)

    def check(config: ModelConfig, headers: Headers) -> None:
        usable = device.memory().usable
        footprint = _footprint(config, headers, context, dtype, rows, kv_quantization, adapters)
        if experts_in_memory is not None:
            check_readable(name, headers)
            experts = ExpertMemory.of_checkpoint(config, headers, footprint.dtype)
            footprint = with_experts(footprint, experts, experts_in_memory, usable)
        if usable is not None and footprint.needed > usable:
            all_experts = ExpertMemory.of_checkpoint(config, headers, footprint.dtype) if is_readable(headers) else None
            fits = "; or ".join(_what_fits(config, footprint, all_experts, usable))
            what = advice or f"{fits}; --force (force=True) loads it anyway"
            raise FitError(f"{_excess(name, footprint, usable)}: {what}")

    return check


def check_context(context: int | None) -> None:
    """InputError for a context below 1."""
    if context is not None and context < 1:
        raise InputError(f"context is {context}: expected a number of tokens, 1 or more")


def is_readable(headers: Headers) -> bool:
    """Whether experts can be read one by one."""
    return not any(isinstance(tensor, DerivedTensor) for tensor in headers.values())


def check_readable(name: str, headers: Headers) -> None:
    """InputError where they cannot; name: the model's."""
    if not is_readable(headers):
        raise InputError(f"{name}: experts of another quantizer's format are not read apart: convert it first")


def place_experts(
    experts_in_memory: ExpertsInMemory,
    *,
    context: int | None = None,
    dtype: mx.Dtype | None = None,
    rows: int = 1,
    kv_quantization: KVQuantization | None = None,
    adapters: CountAdapters | None = None,
) -> PlaceExperts | None:
    """What `load_model` is to ask which experts are to be in memory; the arguments are those of `fit_check`.

    Raises InputError, and so does what is asked, for fewer bytes than any placement takes.
    """
    check_experts_in_memory(experts_in_memory)
    if experts_in_memory is None:
        return None

    def place(config: ModelConfig, headers: Headers) -> ExpertPlacement | None:
        footprint = _footprint(config, headers, context, dtype, rows, kv_quantization, adapters)
        experts = ExpertMemory.of_checkpoint(config, headers, footprint.dtype)
        found = with_experts(footprint, experts, experts_in_memory, device.memory().usable).experts
        return None if found is None else found.placement

    return place


def _footprint(
    config: ModelConfig,
    headers: Headers,
    context: int | None,
    dtype: mx.Dtype | None,
    rows: int,
    kv_quantization: KVQuantization | None,
    adapters: CountAdapters | None,
) -> Footprint:
    """With all experts in memory; the arguments are those of `fit_check`."""
    tokens = min(context or DEFAULT_CONTEXT, config.max_position_embeddings)
    footprint = Footprint.of_checkpoint(config, headers, context=tokens, dtype=dtype, adapters=adapters)
    return replace(footprint, rows=rows).with_kv(config, kv_quantization)


def with_experts(footprint: Footprint, experts: ExpertMemory, wanted: int | str, usable: int | None) -> Footprint:
    """A footprint with as many experts in memory as are wanted, or "auto", where that is not enough for all.

    experts: all of them. usable: bytes for a model, None where that is unknown. InputError for too few.
    """
    if wanted == "auto":
        if usable is None or footprint.needed <= usable:
            return footprint
        return footprint.with_experts(experts.within(_room_for_experts(footprint, experts, usable)))
    assert isinstance(wanted, int)
    return footprint.with_experts(experts.within(wanted))


def _room_for_experts(footprint: Footprint, experts: ExpertMemory, usable: int) -> int:
    """Bytes that experts may take beside all else and the system, as many as the least placement takes in any case."""
    left = usable - (footprint.needed - experts.resident)
    return max(int(left * AUTO_SHARE), experts.least)


def check_shape(name: str, config: ModelConfig, *, bits: int | None, context: int, rows: int = 1) -> None:
    """FitError unless a config's model, quantized to `bits`, and a cache of `context` tokens a row fit this device."""
    usable = device.memory().usable
    dtype = device.compute_dtype(mx.bfloat16)
    footprint = Footprint.of_conversion(config, bits=bits, context=context, dtype=dtype)
    needed = replace(footprint, rows=rows).needed
    if usable is not None and needed > usable:
        found = f"{name} needs {size(needed)} of memory, this machine has {size(usable)} for it"
        raise FitError(f"{found}: take fewer --layers, fewer --bits or a smaller --batch-size")


def _excess(name: str, footprint: Footprint, usable: int) -> str:
    dtype = str(footprint.dtype).removeprefix("mlx.core.")
    parts = [f"weights {size(footprint.weights.held)} in {dtype}"]
    if footprint.adapters[0]:
        parts.append(f"adapters {size(footprint.adapters[0])}")
    parts.append(f"cache {size(footprint.cache_bytes)} for {footprint.context:,} tokens")
    parts.append(f"{size(footprint.workspace)} to work in")
    needs = f"{name} needs {size(footprint.needed)} of memory ({', '.join(parts)})"
    return f"{needs}, this machine has {size(usable)} for it"


def _what_fits(config: ModelConfig, footprint: Footprint, experts: ExpertMemory | None, usable: int) -> Iterator[str]:
    """What would need no more than `usable`, each as a phrase; if nothing would, how little that is.

    experts: all of them; None if they cannot be read one by one.
    """
    asked = footprint.experts
    if asked is not None and footprint.needed - asked.resident + asked.least <= usable:
        yield "with fewer experts in memory it would fit (--experts-in-memory auto)"
        return
    reads = [] if asked is not None or experts is None else list(_experts_from_ssd(footprint, experts, usable))
    yield from reads
    context = longest_context(config, footprint, usable)
    if context is not None:
        yield f"a context of {context:,} tokens would fit (--context {context})"
    fewer_kv_bits = list(_fewer_kv_bits(config, footprint, usable))
    yield from fewer_kv_bits
    for bits in BITS:
        converted = Footprint.of_conversion(config, bits=bits, context=footprint.context, dtype=footprint.dtype)
        converted = replace(converted, rows=footprint.rows, adapters=footprint.adapters)
        converted = converted.with_kv(config, footprint.kv_quantization)
        if converted.needed <= usable:
            yield f"in {bits} bits it would need {size(converted.needed)}"
            return
    if context is None and not fewer_kv_bits and not reads:
        needed = size(converted.needed)
        yield f"even in {bits} bits it would need {needed}, use a smaller model or several machines (--hosts)"


def _experts_from_ssd(footprint: Footprint, experts: ExpertMemory, usable: int) -> Iterator[str]:
    """What experts in memory would fit, and the speed to expect with the others on slow and on fast SSDs."""
    if not experts.held or not device.writes_in_place():
        return
    room = _room_for_experts(footprint, experts, usable)
    part = footprint.with_experts(experts.within(room))
    if part.needed > usable or part.experts is None:
        return
    bandwidth = stated_bandwidth(device.device_name()) or TYPICAL_BANDWIDTH
    speeds = [part.streamed_tokens_per_second(bandwidth, ssd) for ssd in (SSD_SPEEDS[0], SSD_SPEEDS[-2])]
    what = f"with {size(part.experts.resident)} of its {size(experts.total)} of experts in memory and the others read"
    about = f"about {speeds[0]:.1f} to {speeds[1]:.1f} tokens/s"
    yield f'{what} from the SSD it would fit, with {about} (--experts-in-memory auto, experts_in_memory="auto")'


def _fewer_kv_bits(config: ModelConfig, footprint: Footprint, usable: int) -> Iterator[str]:
    """The most bits for keys and values, where they are not quantized yet, with which it would fit."""
    if footprint.kv_quantization is not None or config.head_dim % min(GROUP_SIZES):
        return
    for bits in KV_BITS:
        needed = footprint.with_kv(config, KVQuantization(bits)).needed
        if needed <= usable:
            option = f"--kv-bits {bits}, kv_quantization=KVQuantization({bits})"
            yield f"with keys and values in {bits} bits it would need {size(needed)} ({option})"
            return


def longest_context(config: ModelConfig, footprint: Footprint, usable: int) -> int | None:
    """The most tokens, in steps of SHORTEST, whose cache fits beside the weights; None if not even SHORTEST do."""
    room = usable - footprint.weights.held - footprint.adapters[0] - footprint.workspace

    def fits(steps: int) -> bool:
        caches = layer_caches(config, steps * SHORTEST, footprint.dtype, footprint.kv_quantization)
        return footprint.rows * sum(kind.held for kind in caches.values()) <= room

    if not fits(1):
        return None
    low, high = 1, config.max_position_embeddings // SHORTEST + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low * SHORTEST
