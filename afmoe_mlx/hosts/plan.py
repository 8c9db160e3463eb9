"""Which layers each host holds: contiguous ones, as much as its memory has room for."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate

import mlx.core as mx

from .. import device
from ..cache import KVQuantization
from ..checkpoint.parts import by_layer, restricted
from ..checkpoint.verify import Headers
from ..errors import FitError, InputError
from ..footprint import DEFAULT_CONTEXT, ExpertMemory, ExpertsInMemory, Footprint, is_readable, with_experts
from ..models import ModelConfig
from ..terminal import size


@dataclass(frozen=True)
class Needs:
    """A model, computing in `dtype`, of which hosts hold parts, with a cache of `context` tokens.

    experts_in_memory: on each host, the others being read.
    """

    config: ModelConfig
    headers: Headers
    dtype: mx.Dtype
    context: int = DEFAULT_CONTEXT
    kv_quantization: KVQuantization | None = None
    experts_in_memory: ExpertsInMemory = None

    def of(self, part: range, usable: int | None = None) -> Footprint:
        """What a host with these layers, and so many bytes for them, needs; InputError for too few bytes of experts."""
        config, headers = restricted(self.config, self.headers, part)
        context = min(self.context, config.max_position_embeddings)
        footprint = Footprint.of_checkpoint(config, headers, context=context, dtype=self.dtype)
        footprint = footprint.with_kv(config, self.kv_quantization)
        if self.experts_in_memory is None:
            return footprint
        experts = ExpertMemory.of_checkpoint(config, headers, self.dtype)
        return with_experts(footprint, experts, self.experts_in_memory, usable)


@dataclass(frozen=True)
class Share:
    """The layers of a host and what it needs for them; usable: bytes that it has, None where that is unknown."""

    name: str
    part: range
    footprint: Footprint
    usable: int | None

    @property
    def fits(self) -> bool:
        return self.usable is None or self.footprint.needed <= self.usable

    @property
    def experts_in_memory(self) -> int | None:
        """Bytes of experts, where the others are read; None where all are in memory."""
        experts = self.footprint.experts
        return None if experts is None or experts.placement is None else experts.resident


def plan(needs: Needs, hosts: Sequence[tuple[str, int | None]]) -> list[Share]:
    """What each of some hosts, of which the first leads, holds: shares as of the bytes that each can use.

    hosts: names and bytes, None for as many as others can. The leader gets a layer of every kind at least, since its
    caches answer for those of all; every other host gets one. InputError for more hosts than that allows.
    """
    layers, kinds = needs.config.num_hidden_layers, needs.config.layer_types
    first = 1 + max(kinds.index(kind) for kind in set(kinds))
    if first + len(hosts) - 1 > layers:
        found = f"{len(hosts)} hosts for {layers} layers, of which the first host needs {first}"
        raise InputError(f"{found}: expected {max(layers - first + 1, 1)} at most")
    parts = _parts(replace(needs, experts_in_memory=None), [usable for _, usable in hosts], first)
    return [
        Share(name, part, needs.of(part, usable), usable) for (name, usable), part in zip(hosts, parts, strict=True)
    ]


def check_shares(model: str, needs: Needs, shares: Sequence[Share]) -> None:
    """FitError that names the hosts whose shares do not fit, and what would fit."""
    lacking = [
        f"{share.name} needs {size(share.footprint.needed)} for {len(share.part)} layers and has {size(share.usable)}"
        for share in shares
        if not share.fits and share.usable is not None
    ]
    if lacking:
        advice = "add a host, take a smaller --context or fewer bits"
        if needs.experts_in_memory is None and device.writes_in_place() and is_readable(needs.headers):
            auto = plan(replace(needs, experts_in_memory="auto"), [(share.name, share.usable) for share in shares])
            if all(share.fits for share in auto):
                advice += ", or have experts read from the SSDs (--experts-in-memory auto)"
        raise FitError(f"{model}: {', '.join(lacking)}: {advice}; --force (force=True) loads it anyway")


def _parts(needs: Needs, usable: Sequence[int | None], first: int) -> list[range]:
    """Of all ways to cut the layers, the one whose fullest host is the least full, and the others even."""
    layers, last = needs.config.num_hidden_layers, len(usable) - 1
    own = by_layer(needs.headers)
    each = [replace(needs, headers=own[i]).of(range(i, i + 1)) for i in range(layers)]
    sums = [0, *accumulate(footprint.weights.held + footprint.cache_bytes for footprint in each)]
    known = [room for room in usable if room is not None] or [1]
    rooms = [max(sum(known) // len(known) if room is None else room, 1) for room in usable]
    workspace = max(footprint.workspace for footprint in each)

    @cache
    def best(rank: int, start: int) -> tuple[float, float, list[range]]:
        """How full the fullest of the hosts from `rank` on is, the sum of squares, and their parts from `start` on."""
        found: tuple[float, float, list[range]] | None = None
        least = first if rank == 0 else start + 1
        for end in range(least, layers - (last - rank) + 1) if rank < last else (layers,):
            full = (sums[end] - sums[start] + workspace) / rooms[rank]
            others, squares, parts = best(rank + 1, end) if rank < last else (0.0, 0.0, [])
            fullest, squares = max(full, others), squares + full**2
            if found is None or (fullest, squares) < found[:2]:
                found = fullest, squares, [range(start, end), *parts]
        assert found is not None
        return found

    return best(0, 0)[2]
