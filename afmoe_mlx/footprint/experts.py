"""Experts from the SSD: which of them a budget of memory holds, and what speed is to be expected of the rest."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Literal, Self

import mlx.core as mx

from .. import device
from ..checkpoint.files import DTYPES
from ..errors import InputError
from ..models import ExpertPlacement, ModelConfig
from ..terminal import size
from .weights import Headers, converted_arrays, loaded_dtype

# Bytes, or what is free but for what the system needs; None: all experts are in memory.
ExpertsInMemory = int | Literal["auto"] | None

# Of what is left beside everything else, so much is taken: the system needs the rest, its page cache keeps experts too.
AUTO_SHARE = 0.8

# The share of experts found in memory for the share that has room, as a runtime with such a cache measured it on a
# model with 128 experts of which a token takes 8.
HITS = ((0.0, 0.0), (0.125, 0.45), (0.25, 0.67), (0.5, 0.89), (1.0, 1.0))

# Seconds a token waits, in each layer that reads experts, for the host to know the router's choice.
WAIT = 3e-4

# Bytes a second of SSDs, from an entry-level Mac's to a large one's; and what is reckoned with where it is unknown.
SSD_SPEEDS = (3e9, 5.5e9, 7.5e9, 14e9)
TYPICAL_SSD = SSD_SPEEDS[0]

LAYER = re.compile(r".*\blayers\.(\d+)\..*\.(?:experts|switch_mlp)\..*")


@dataclass(frozen=True)
class ExpertMemory:
    """The experts of a model as a placement holds them. Bytes."""

    num_experts: int
    chosen: int
    held: Sequence[int]
    """One expert in memory, by layer that has any."""
    stored: Sequence[int]
    """One expert in the files, by layer."""
    placement: ExpertPlacement | None = None
    """None: all are in memory."""

    @classmethod
    def of_checkpoint(cls, config: ModelConfig, headers: Headers, dtype: mx.Dtype) -> Self:
        """All experts of a checkpoint in memory, in any layout, loaded to compute in `dtype`."""
        held: dict[int, int] = {}
        stored: dict[int, int] = {}
        for name, tensor in headers.items():
            if match := LAYER.fullmatch(name):
                layer, count = int(match[1]), prod(tensor.shape)
                held[layer] = held.get(layer, 0) + count * loaded_dtype(name, DTYPES[tensor.dtype], dtype, config).size
                stored[layer] = stored.get(layer, 0) + tensor.nbytes
        return cls._of_layers(config, held, stored)

    @classmethod
    def of_conversion(cls, config: ModelConfig, *, bits: int | None, dtype: mx.Dtype = mx.bfloat16) -> Self:
        """All experts of a config's model as our converter would quantize it, in memory."""
        held: dict[int, int] = {}
        for name, array in converted_arrays(config, dtype, bits=bits).items():
            if match := LAYER.fullmatch(name):
                held[int(match[1])] = held.get(int(match[1]), 0) + array.nbytes
        return cls._of_layers(config, held, held)

    @classmethod
    def _of_layers(cls, config: ModelConfig, held: Mapping[int, int], stored: Mapping[int, int]) -> Self:
        """By the bytes of all experts of each layer."""
        number = config.num_experts
        each, stored_each = ([sizes[layer] // number for layer in sorted(sizes)] for sizes in (held, stored))
        return cls(number, config.num_experts_per_tok, each, stored_each)

    @property
    def total(self) -> int:
        """All experts in memory."""
        return self.num_experts * sum(self.held)

    @property
    def resident(self) -> int:
        """Those that are."""
        return self.total if self.placement is None else self._taken(self.placement)

    @property
    def least(self) -> int:
        """What any placement takes at least."""
        return 2 * sum(self.held)

    @property
    def hit_rate(self) -> float:
        """To be expected in layers that read experts."""
        return 1.0 if self.placement is None else _hits(self.placement.slots / self.num_experts)

    @property
    def read_per_token(self) -> int:
        """Bytes to be expected from the SSD for a token of an answer."""
        return 0 if self.placement is None else round(self.chosen * (1 - self.hit_rate) * sum(self._streamed))

    @property
    def read_per_prompt(self) -> int:
        """Bytes from the SSD for a prompt, which as a rule needs all experts."""
        return self.num_experts * sum(self._streamed)

    def seconds_per_token(self, ssd: float) -> float:
        """What reading adds to a token, with an SSD of so many bytes a second and nothing done meanwhile."""
        return len(self._streamed) * WAIT + self.read_per_token / ssd

    def within(self, budget: int) -> Self:
        """With a placement that takes `budget` bytes at most; InputError if that is too few.

        Whole layers wait for nothing, slots in all of them miss least: of the ways to share the budget the fastest one.
        """
        if budget >= self.total or not self.held:
            return self
        best: Self | None = None
        for whole in range(len(self.held)):
            left = budget - self.num_experts * sum(self.held[:whole])
            slots = min(left // sum(self.held[whole:]), self.num_experts - 1)
            if slots < 2:
                break
            placed = self._with(ExpertPlacement(slots, whole))
            if best is None or placed.seconds_per_token(TYPICAL_SSD) < best.seconds_per_token(TYPICAL_SSD):
                best = placed
        if best is None:
            layers = f"2 experts in each of {len(self.held)} layers"
            raise InputError(f"{size(budget)} for experts in memory: expected {size(self.least)} at least, {layers}")
        return best

    def _with(self, placement: ExpertPlacement) -> Self:
        return type(self)(self.num_experts, self.chosen, self.held, self.stored, placement)

    def _taken(self, placement: ExpertPlacement) -> int:
        whole = placement.whole_layers
        return self.num_experts * sum(self.held[:whole]) + placement.slots * sum(self.held[whole:])

    @property
    def _streamed(self) -> Sequence[int]:
        """Stored bytes of an expert, of the layers that read theirs."""
        return () if self.placement is None else self.stored[self.placement.whole_layers :]


def check_experts_in_memory(given: ExpertsInMemory) -> None:
    """InputError for what is no budget, and for a device on which experts cannot be read in place."""
    if given is None:
        return
    if given != "auto" and (isinstance(given, bool) or not isinstance(given, int) or given < 1):
        raise InputError(f'experts_in_memory is {given!r}: expected a number of bytes, "auto" or None')
    if not device.writes_in_place():
        raise InputError("experts cannot be read on CUDA: leave out experts_in_memory, or use the CPU")


def _hits(share: float) -> float:
    """By the straight lines between HITS."""
    for (x, y), (next_x, next_y) in pairwise(HITS):
        if share <= next_x:
            return y + (next_y - y) * (share - x) / (next_x - x)
    return 1.0
