"""The operations of MLX that the models are made of, one by one, in the sizes of the published models.

They name what is wrong where a model's logits are.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import mlx.core as mx

from ..checkpoint.quantized import MODES, parameters
from ..models.attention import attend, attend_plain, causal_mask
from ..models.moe import route
from ..models.rope import Rope, RopeParameters, rotate
from .limits import DTYPES
from .weights import in_every_dtype, integers

Arrays = Sequence[mx.array]

# Query heads, heads of keys and values, and their size.
HEADS = {
    "Trinity Nano": (8, 2, 128),
    "Trinity Mini": (32, 4, 128),
    "Trinity Large": (48, 8, 128),
    "LFM2": (32, 8, 64),
}
# New tokens, keys and window: a token, one with many keys, a verified draft, and a chunk beyond its window.
ATTENDED = ((1, 100, None), (1, 2100, None), (4, 100, None), (70, 100, 32))
# A token, a draft and a prompt; for experts, rows that are few enough not to be sorted and rows that are.
ROWS = (1, 5, 80)


@dataclass(frozen=True)
class Operation:
    """An operation as models use it, its inputs, and what it is to compute in plain float32 on the CPU."""

    name: str
    inputs: Callable[[], Arrays]
    """What both are given: numbers that all dtypes hold, in float32, and integers."""
    run: Callable[..., list[mx.array]]
    plain: Callable[..., list[mx.array]]
    dtypes: tuple[str, ...] = tuple(DTYPES)
    mode: str | None = None
    """Of quantized weights."""

    def on_device(self, dtype: str) -> list[mx.array]:
        """Its results on the default device, in `dtype`."""
        return self.run(*(_cast(array, DTYPES[dtype]) for array in self._given))

    def twin(self) -> list[mx.array]:
        """The same in float32, by the CPU if that is the default device."""
        return self.plain(*self._given)

    @cached_property
    def _given(self) -> Arrays:
        with mx.stream(mx.cpu):
            inputs = self.inputs()
            mx.eval(inputs)
        return inputs


def _cast(array: mx.array, dtype: mx.Dtype) -> mx.array:
    return array.astype(dtype) if array.dtype == mx.float32 else array


def numbers(seed: str, *shape: int) -> mx.array:
    """Float32 between -2 and 2 that all dtypes hold."""
    return integers(seed, shape, 256) / 128


def operations() -> Iterator[Operation]:
    """All of them."""
    yield Operation("mx.fast.rms_norm", lambda: (numbers("x", 80, 1024), numbers("w", 1024)), _norm, _plain_norm)
    yield _rope("mx.fast.rope", 50)
    # an angle has so few digits left there that only bfloat16 has fewer
    yield _rope("rotation at position 130,000", 130_000, "bfloat16")
    for name, heads in HEADS.items():
        yield _attention(f"mx.fast.scaled_dot_product_attention, {name}", *heads)
    yield Operation("mx.conv1d", lambda: (numbers("x", 2, 20, 256), numbers("w", 256, 3, 1)), _conv, _plain_conv)
    yield Operation("mx.matmul", lambda: (numbers("w", 256, 1024), *_rows(1024)), _matmul, _matmul)
    yield Operation("mx.gather_mm", lambda: (numbers("w", 16, 256, 512), *_rows(512)), _gather_mm, _plain_gather)
    for mode in MODES:
        yield _quantized(f"mx.quantized_matmul, {mode}", mode)
        yield _quantized(f"mx.gather_qmm, {mode}", mode, experts=16)
    yield Operation("the choice of experts", _router_logits, _choose, _plain_choose, ("float32",))
    yield Operation("mx.argsort of a vocabulary", _vocabulary, lambda x: [mx.argsort(x)], _plain_sort, ("float32",))


def _norm(x: mx.array, w: mx.array) -> list[mx.array]:
    return [mx.fast.rms_norm(x, w, 1e-5)]


def _plain_norm(x: mx.array, w: mx.array) -> list[mx.array]:
    return [x / mx.sqrt((x * x).mean(axis=-1, keepdims=True) + 1e-5) * w]


def _rope(name: str, offset: int, *dtypes: str) -> Operation:
    def run(x: mx.array) -> list[mx.array]:
        rope = Rope(128, RopeParameters())
        return [rope(x, rope.consecutive(offset, x.shape[2], end=offset + x.shape[2]))]

    def plain(x: mx.array) -> list[mx.array]:
        return [rotate(x, *Rope(128, RopeParameters()).tables(mx.arange(offset, offset + x.shape[2])[None]))]

    return Operation(name, lambda: (numbers("x", 1, 4, 9, 128),), run, plain, dtypes or tuple(DTYPES))


def _attention(name: str, query_heads: int, heads: int, size: int) -> Operation:
    def inputs() -> Arrays:
        shapes = (
            [(query_heads, L, "q") for L, _, _ in ATTENDED],
            [(heads, K, key) for _, K, _ in ATTENDED for key in "kv"],
        )
        return [numbers(f"{key}{length}", 1, n, length, size) for group in shapes for n, length, key in group]

    def each(arrays: Arrays, attention: Callable[..., mx.array]) -> list[mx.array]:
        queries, others = arrays[: len(ATTENDED)], iter(arrays[len(ATTENDED) :])
        return [
            attention(q, next(others), next(others), scale=size**-0.5, mask=causal_mask(L, K, window=window))
            for q, (L, K, window) in zip(queries, ATTENDED, strict=True)
        ]

    def plain(*arrays: mx.array) -> list[mx.array]:
        return each(arrays, lambda *qkv, **options: attend_plain(*qkv, **options)[0])

    return Operation(name, inputs, lambda *arrays: each(arrays, attend), plain)


def _conv(x: mx.array, w: mx.array) -> list[mx.array]:
    return [mx.conv1d(x, w, groups=w.shape[0])]


def _plain_conv(x: mx.array, w: mx.array) -> list[mx.array]:
    taps, length = w.shape[1], x.shape[1] - w.shape[1] + 1
    return [sum((x[:, i : i + length] * w[:, i, 0] for i in range(taps)), start=mx.array(0.0))]


def _rows(width: int) -> list[mx.array]:
    return [numbers(f"rows{rows}", rows, width) for rows in ROWS]


def _matmul(w: mx.array, *rows: mx.array) -> list[mx.array]:
    return [x @ w.T for x in rows]


def _experts_of(rows: int, experts: int) -> mx.array:
    """(rows,) in order, as they are where there are many."""
    return mx.array([row * experts // rows for row in range(rows)], mx.uint32)


def _gather_mm(w: mx.array, *rows: mx.array) -> list[mx.array]:
    columns = w.swapaxes(-1, -2)
    return [
        mx.gather_mm(x[:, None], columns, rhs_indices=_experts_of(len(x), len(w)), sorted_indices=len(x) > 64)[:, 0]
        for x in rows
    ]


def _plain_gather(w: mx.array, *rows: mx.array) -> list[mx.array]:
    return [(w[_experts_of(len(x), len(w))] @ x[..., None])[..., 0] for x in rows]


def _quantized(name: str, mode: str, experts: int | None = None) -> Operation:
    options: Any = parameters({"mode": mode})
    width = 1024 if experts is None else 512

    def inputs() -> Arrays:
        shape = (256, width) if experts is None else (experts, 256, width)
        return [*_rows(width), *map(in_every_dtype, mx.quantize(numbers("w", *shape) / 32, **options))]

    def split(arrays: Arrays) -> tuple[Arrays, Any]:
        """The rows, and the weight, its scales and biases."""
        rows, (weight, scales, *biases) = arrays[: len(ROWS)], arrays[len(ROWS) :]
        return rows, (weight, scales, biases[0] if biases else None)

    def run(*arrays: mx.array) -> list[mx.array]:
        rows, (weight, scales, biases) = split(arrays)
        if experts is None:
            return [mx.quantized_matmul(x, weight, scales, biases, transpose=True, **options) for x in rows]
        return [
            mx.gather_qmm(
                x[:, None],
                weight,
                scales,
                biases,
                rhs_indices=_experts_of(len(x), experts),
                transpose=True,
                sorted_indices=len(x) > 64,
                **options,
            )[:, 0]
            for x in rows
        ]

    def plain(*arrays: mx.array) -> list[mx.array]:
        rows, (weight, scales, biases) = split(arrays)
        w = mx.dequantize(weight, scales, biases, **options, dtype=mx.float32)
        return _matmul(w, *rows) if experts is None else _plain_gather(w, *rows)

    return Operation(name, inputs, run, plain, mode=mode)


def _router_logits() -> Arrays:
    ties_broken = mx.arange(128) / 2**12  # in float32 alone
    return numbers("logits", 80, 128) + ties_broken, numbers("bias", 128) / 16


def _choose(logits: mx.array, bias: mx.array) -> list[mx.array]:
    weights, experts = route(logits, bias, k=8, normalize=True, eps=1e-20, scale=1.0)
    return [mx.put_along_axis(mx.zeros_like(logits), experts, weights, axis=-1)]


def _plain_choose(logits: mx.array, bias: mx.array) -> list[mx.array]:
    scores = 1 / (1 + mx.exp(-logits))
    ranked = scores + bias
    last = mx.sort(ranked, axis=-1)[:, -8][:, None]
    chosen = mx.where(ranked >= last, scores, 0)
    return [chosen / chosen.sum(axis=-1, keepdims=True)]


SIZE = 200_192


def _vocabulary() -> Arrays:
    return (mx.array([i * 100_003 % SIZE for i in range(SIZE)], mx.float32),)


def _plain_sort(x: mx.array) -> list[mx.array]:
    """By the inverse of the permutation that it is."""
    return [mx.put_along_axis(mx.zeros(SIZE), x.astype(mx.int32), mx.arange(SIZE).astype(mx.float32), axis=0)]
