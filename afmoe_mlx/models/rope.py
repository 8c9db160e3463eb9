"""Rotary position embeddings as Transformers' `modeling_rope_utils` computes them: default, linear, llama3, yarn."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import mlx.core as mx
import mlx.nn as nn

from ..device import rotates_by_kernel
from ..errors import ConfigError
from ..values import is_number, listed, shown

ROPE_TYPES = ("default", "linear", "llama3", "yarn")
ROPE_KEYS = frozenset(
    {
        "rope_parameters",
        "rope_scaling",
        "rope_theta",
        "partial_rotary_factor",
        "original_max_position_embeddings",
    }
)
# What must be more than 0 for each type; the rest is not read.
POSITIVE = {
    "default": ("rope_theta",),
    "linear": ("rope_theta", "factor"),
    "llama3": ("rope_theta", "original_max_position_embeddings", "factor", "low_freq_factor"),
    "yarn": ("rope_theta", "original_max_position_embeddings", "factor", "beta_fast", "beta_slow"),
}
# Beyond this, powers and logarithms of a parameter overflow.
LARGEST = 1e30


@dataclass(frozen=True, kw_only=True)
class RopeParameters:
    """The numbers behind the rotation frequencies; which of them are read depends on `rope_type`."""

    rope_type: str = "default"
    rope_theta: float = 10000.0
    factor: float = 1.0
    original_max_position_embeddings: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    @classmethod
    def from_config(cls, raw: Mapping[str, Any], default_theta: float, max_position_embeddings: int) -> Self:
        """Read `rope_parameters` (Transformers 5) or `rope_theta` and `rope_scaling` (before), as Transformers does."""
        given = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
        if not isinstance(given, Mapping):
            raise ConfigError(f"config: rope_parameters is {shown(given)}: expected an object")
        if nested := [key for key, value in given.items() if isinstance(value, Mapping)]:
            found = f"is nested under {shown(nested[0])}"
            raise ConfigError(f"config: rope_parameters {found}: expected the same for all layers")
        # to Transformers a beta of 0 is an absent one, and a truncate of null is false
        values = {k: v for k, v in given.items() if v is not None and not (v == 0 and k.startswith("beta_"))}
        if "truncate" in given:
            values["truncate"] = given["truncate"] or False
        rope_type = values.pop("rope_type", None) or values.pop("type", "default")
        values.pop("type", None)
        if rope_type not in ROPE_TYPES:
            raise ConfigError(f"config: rope_type is {shown(rope_type)}: expected one of {', '.join(ROPE_TYPES)}")
        partial = values.pop("partial_rotary_factor", raw.get("partial_rotary_factor") or 1.0)
        if partial != 1.0:
            found = f"partial_rotary_factor is {shown(partial)}"
            raise ConfigError(f"config: {found}: expected 1.0, others are not implemented")
        values.setdefault("rope_theta", raw.get("rope_theta") or default_theta)
        original = raw.get("original_max_position_embeddings", values.get("original_max_position_embeddings"))
        values["original_max_position_embeddings"] = max_position_embeddings if original is None else original
        fields = cls.__dataclass_fields__.keys()
        if unknown := values.keys() - fields:
            warnings.warn(f"config: unknown keys of rope_parameters ignored: {listed(unknown)}", stacklevel=4)
        numbers = {key: _checked(key, value) for key, value in values.items() if key in fields}
        if (length := numbers["original_max_position_embeddings"]) <= 0:
            raise ConfigError(f"config: original_max_position_embeddings is {shown(length)}: expected more than 0")
        if rope_type == "yarn":
            numbers.setdefault("factor", max_position_embeddings / length)
        required = {"linear": ("factor",), "llama3": ("factor", "low_freq_factor", "high_freq_factor")}
        if missing := [key for key in required.get(rope_type, ()) if key not in numbers]:
            raise ConfigError(f"config: rope_parameters of type {rope_type} has no {missing[0]}")
        return cls(rope_type=rope_type, **numbers)

    def __post_init__(self) -> None:
        for key in POSITIVE[self.rope_type]:
            if not getattr(self, key) > 0:
                raise ConfigError(f"config: rope_parameters.{key} is {getattr(self, key)}: expected more than 0")
        low, high = self.low_freq_factor, self.high_freq_factor
        if self.rope_type == "llama3" and low >= high:
            raise ConfigError(f"config: rope_parameters.low_freq_factor is {low}: expected less than {high}")
        if self.rope_type == "yarn" and self.rope_theta == 1:
            raise ConfigError("config: rope_parameters.rope_theta is 1: expected another with yarn")
        for key in ("mscale", "mscale_all_dim"):
            if (getattr(self, key) or 0) < 0:
                raise ConfigError(f"config: rope_parameters.{key} is {getattr(self, key)}: expected 0 or more")

    @property
    def scale(self) -> float:
        """What queries and keys are multiplied by besides being rotated (yarn's attention factor)."""
        if self.rope_type != "yarn":
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self._mscale(self.mscale) / self._mscale(self.mscale_all_dim)
        return self._mscale(1.0)

    def _mscale(self, mscale: float) -> float:
        return 1.0 if self.factor <= 1 else 0.1 * mscale * math.log(self.factor) + 1.0

    def frequencies(self, dims: int) -> mx.array:
        """(dims / 2,) float32: radians per position, Transformers' `inv_freq`, in its order of operations."""
        periods = self.rope_theta ** (mx.arange(0, dims, 2, dtype=mx.float32) / dims)
        if self.rope_type == "linear":
            return 1 / periods / self.factor
        if self.rope_type == "llama3":
            return self._llama3(1 / periods)
        if self.rope_type == "yarn":
            return self._yarn(periods, dims)
        return 1 / periods

    def _llama3(self, freqs: mx.array) -> mx.array:
        low, high, length = self.low_freq_factor, self.high_freq_factor, self.original_max_position_embeddings
        lengths = (1 / freqs) * (2 * math.pi)
        smooth = ((1 / lengths) * length - low) / (high - low)
        medium = (1 - smooth) * freqs / self.factor + smooth * freqs
        slow = mx.where(lengths > length / low, freqs / self.factor, medium) if low > 0 else medium
        return mx.where(lengths < length / high, freqs, slow)

    def _yarn(self, periods: mx.array, dims: int) -> mx.array:
        low, high = (self._yarn_dimension(beta, dims) for beta in (self.beta_fast, self.beta_slow))
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, dims - 1)
        if low == high:
            high += 0.001
        kept = 1 - mx.clip((mx.arange(dims // 2, dtype=mx.float32) - low) / (high - low), 0, 1)
        return 1 / (self.factor * periods) * (1 - kept) + 1 / periods * kept

    def _yarn_dimension(self, rotations: float, dims: int) -> float:
        length = self.original_max_position_embeddings
        return dims * math.log(length / (rotations * 2 * math.pi)) / (2 * math.log(self.rope_theta))


def _checked(key: str, value: Any) -> Any:
    """A number that can be computed with (`truncate`: a boolean), or ConfigError."""
    if key == "truncate":
        ok, expected = isinstance(value, bool), "true or false"
    else:
        ok = is_number(value) and (value == 0 or 1 / LARGEST <= abs(value) <= LARGEST)
        expected = f"a number, {LARGEST:g} at most"
    if not ok:
        raise ConfigError(f"config: rope_parameters.{key} is {shown(value)}: expected {expected}")
    return value if abs(value) < 2**53 else float(value)  # MLX takes no integer that is larger than its own


# Where tokens stand, as arrays, so that a compiled step takes them as inputs: offsets () or (B,) for the kernel, or
# cosines and signed sines (B or 1, 1, L, head_dim), both float32.
Place = tuple[mx.array, ...]


class Rope(nn.Module):
    """Rotates queries or keys (B, heads, L, head_dim) by their positions; one for all layers."""

    def __init__(self, dims: int, parameters: RopeParameters) -> None:
        super().__init__()
        self.dims = dims
        self.scale = parameters.scale
        # the kernel inverts reciprocals of the frequencies, which costs the last bit
        self._frequencies = parameters.frequencies(dims)
        self._wavelengths = 1 / self._frequencies
        mx.eval(self._frequencies, self._wavelengths)  # here, since another thread could not

    def __call__(self, x: mx.array, place: "Place") -> mx.array:
        """Rotate x by one kernel, or in plain operations where `place` holds tables."""
        if len(place) == 2:
            return rotate(x, *place)
        x = x if self.scale == 1.0 else x * self.scale
        freqs = self._wavelengths
        return mx.fast.rope(x, self.dims, traditional=False, base=None, scale=1.0, offset=place[0], freqs=freqs)

    def consecutive(self, offset: int | mx.array, length: int, *, end: int) -> "Place":
        """`length` positions from `offset` on, an int, or (B,) for one a row; none of them is beyond `end`."""
        offset = mx.array(offset)
        return (offset,) if rotates_by_kernel(end) else self.tables(mx.arange(length) + offset.reshape(-1, 1))

    def tables(self, positions: mx.array) -> "Place":
        """Positions (B, L) or (1, L) that may be anything."""
        angles = positions[:, None, :, None].astype(mx.float32) * self._frequencies
        cos, sin = mx.cos(angles) * self.scale, mx.sin(angles) * self.scale
        return mx.concatenate([cos, cos], axis=-1), mx.concatenate([-sin, sin], axis=-1)


def rotate(x: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
    """Rotary embedding of x (B, heads, L, head_dim) in plain operations, the kernel's reference."""
    first, second = mx.split(x, 2, axis=-1)
    swapped = mx.concatenate([second, first], axis=-1)
    return (x * cos + swapped * sin).astype(x.dtype)  # in float32, as the tables are
