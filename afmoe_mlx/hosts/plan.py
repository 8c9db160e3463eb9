"""Which layers each host holds: contiguous ones, as much as its memory has room for."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

import mlx.core as mx

from ..cache import KVQuantization
from ..checkpoint.parts import restricted
from ..checkpoint.verify import Headers
from ..errors import FitError, InputError
from ..footprint import DEFAULT_CONTEXT, Footprint
from ..models import ModelConfig
from ..terminal import size


@dataclass(frozen=True)
class Needs:
    """A model, computing in `dtype`, of which hosts hold parts, with a cache of `context` tokens."""

    config: ModelConfig
    headers: Headers
    dtype: mx.Dtype
    context: int = DEFAULT_CONTEXT
    kv_quantization: KVQuantization | None = None

    def of(self, part: range) -> Footprint:
        """What a host with these layers needs."""
        config, headers = restricted(self.config, self.headers, part)
        context = min(self.context, config.max_position_embeddings)
        footprint = Footprint.of_checkpoint(config, headers, context=context, dtype=self.dtype)
        return footprint.with_kv(config, self.kv_quantization)


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


def plan(needs: Needs, hosts: Sequence[tuple[str, int | None]]) -> list[Share]:
    """What each of some hosts, of which the first leads, holds: shares as of the bytes that each can use.

    hosts: names and bytes, None for as many as others can. The leader gets a layer of every kind at least, since its
    caches answer for those of all; every other host gets one. InputError for more hosts than that allows.
    """
    layers, kinds = needs.config.num_hidden_layers, needs.config.layer_types
    first = 1 + max(kinds.index(kind) for kind in set(kinds))
    if first + len(hosts) - 1 > layers:
        found = f"{len(hosts)} hosts for {layers} layers, of which the first host needs {first}"
        raise InputError(f"{found}: expected {max(layers - first + 1, 1)} hosts at most")
    parts = _parts(needs, [usable for _, usable in hosts], first)
    return [Share(name, part, needs.of(part), usable) for (name, usable), part in zip(hosts, parts, strict=True)]


def check_shares(model: str, shares: Sequence[Share]) -> None:
    """FitError that names the hosts whose shares do not fit."""
    lacking = [
        f"{share.name} needs {size(share.footprint.needed)} for {len(share.part)} layers and has {size(share.usable)}"
        for share in shares
        if not share.fits and share.usable is not None
    ]
    if lacking:
        advice = "add a host, take a smaller --context or fewer bits; --force (force=True) loads it anyway"
        raise FitError(f"{model}: {', '.join(lacking)}: {advice}")


def _parts(needs: Needs, usable: Sequence[int | None], first: int) -> list[range]:
    """Of all ways to cut the layers, the one whose fullest host is the least full."""
    layers, last = needs.config.num_hidden_layers, len(usable) - 1
    each = [needs.of(range(i, i + 1)) for i in range(layers)]  # the first has what stands around the layers
    sums = [0, *accumulate(footprint.weights.held + footprint.cache_bytes for footprint in each)]
    known = [room for room in usable if room is not None] or [1]
    rooms = [max(sum(known) // len(known) if room is None else room, 1) for room in usable]
    workspace = max(footprint.workspace for footprint in each)

    @cache
    def best(rank: int, start: int) -> tuple[float, list[range]]:
        """How full the fullest of the hosts from `rank` on is, and their parts, the layers from `start` on."""
        found: tuple[float, list[range]] | None = None
        least = first if rank == 0 else start + 1
        for end in range(least, layers - (last - rank) + 1) if rank < last else (layers,):
            full = (sums[end] - sums[start] + workspace) / rooms[rank]
            others, parts = best(rank + 1, end) if rank < last else (0.0, [])
            if found is None or max(full, others) < found[0]:
                found = max(full, others), [range(start, end), *parts]
        assert found is not None
        return found

    return best(0, 0)[1]
