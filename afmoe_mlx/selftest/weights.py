"""The weights of the self-test's tiny models: the same numbers on every device, with every version of everything.

They are made of the bytes of Python's own generator, whose stream never changes. Each is an integer of 8 bits times a
power of two, so that float32, bfloat16 and float16 hold the same numbers, and what differs is arithmetic alone.

Which experts a token chooses is written into its embedding, far from any tie: a choice that a rounding could turn would
make one logit wholly another, and no limit could tell that from a fault.
"""

import math
import random
from collections.abc import Sequence

import mlx.core as mx

from ..models import ModelConfig


def weight(path: str, shape: Sequence[int], config: ModelConfig) -> mx.array:
    """The values of a parameter of the unfused model, float32."""
    if path.endswith("embedding_norm.weight"):  # at right angles to the codes, or a tied head would see little else
        return signs(2 * config.num_experts, shape[0])[-1] * (128 + integers(path, shape, 32)) / 128
    if path.endswith("norm.weight"):
        return (128 + integers(path, shape, 32)) / 128
    if path.endswith("expert_bias"):
        return integers(path, shape, 64) / 2048
    if path.endswith(("router.gate.weight", "feed_forward.gate.weight")):
        layer, experts = int(path.split(".")[2]), shape[0]
        codes = signs(experts, shape[1])[mx.array([(expert + layer) % experts for expert in range(experts)])]
        return (8 * codes + integers(path, shape, 4)) / 256
    if path.endswith("embed_tokens.weight"):
        # against what the layers add, which AFMoE's norms make larger
        size = 512 if getattr(config, "mup_enabled", False) else 64
        return (64 * _token_codes(shape, config.num_experts) + integers(path, shape, 64)) / size
    if "conv.conv" in path:
        return integers(path, shape, 256) / 256
    is_last = path.endswith(("o_proj.weight", "out_proj.weight", "down_proj.weight"))  # in what a layer adds
    return integers(path, shape, 256) / (4096 if is_last else 2048)


def integers(seed: str, shape: Sequence[int], bound: int) -> mx.array:
    """Integers from -bound to bound - 1 as float32, drawn by a seed; bound: a power of two, 256 at most."""
    drawn = mx.array(random.Random(seed).randbytes(math.prod(shape))).astype(mx.float32)  # type: ignore[arg-type]
    if bound == 256:
        return (2 * drawn - 255).reshape(*shape)
    return (mx.floor(drawn * (bound / 128)) - bound).reshape(*shape)


def in_every_dtype(array: mx.array) -> mx.array:
    """Scales and biases in float32 as numbers that every dtype holds: bfloat16's, of their size. Others as they are."""
    return array.astype(mx.bfloat16).astype(mx.float32) if array.dtype == mx.float32 else array


def signs(codes: int, columns: int) -> mx.array:
    """(codes, columns) of 1 and -1: Walsh functions, each at right angles to all others."""
    rows = [[1 - 2 * ((code & column).bit_count() % 2) for column in range(columns)] for code in range(codes)]
    return mx.array(rows, mx.float32)


def _token_codes(shape: Sequence[int], experts: int) -> mx.array:
    """For each token the codes of the two experts that it is to choose, added up: a pair that few others have."""
    codes = signs(experts, shape[1])
    first = [token % experts for token in range(shape[0])]
    second = [(token + 1 + token // experts % (experts - 1)) % experts for token in range(shape[0])]
    return codes[mx.array(first)] + codes[mx.array(second)]
