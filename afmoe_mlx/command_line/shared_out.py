"""What `info --hosts` says: who would hold what of a model, and what speed is to be expected."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..cache import KVQuantization
from ..terminal import printable, size
from .requests.machine import InfoRequest

if TYPE_CHECKING:
    from ..hosts.plan import Share


@dataclass(frozen=True)
class SharedOut:
    """The share of each host; bandwidths: bytes a second of their memories; speed: tokens a second at most."""

    shares: "Sequence[Share]"
    bandwidths: Sequence[float]
    hop: float
    speed: float

    def as_json(self) -> dict[str, Any]:
        """For --json."""
        held = [
            {
                "name": share.name,
                "layers": [share.part.start, share.part.stop],
                "weight_bytes": share.footprint.weights.held,
                "needed_bytes": share.footprint.needed,
                "usable_bytes": share.usable,
                "bandwidth_bytes_per_second": bandwidth,
                "experts_in_memory_bytes": share.experts_in_memory,
                "fits": share.fits,
            }
            for share, bandwidth in zip(self.shares, self.bandwidths, strict=True)
        ]
        return {"shares": held, "hop_seconds": self.hop, "max_tokens_per_second": self.speed}

    def lines(self) -> list[str]:
        """For a person."""
        told = [f"{'':28}{'layers':>10}{'weights':>12}{'needs':>12}{'has':>12}{'fits':>6}"]
        for share in self.shares:
            layers = f"{share.part.start} to {share.part.stop - 1}"
            usable = "?" if share.usable is None else size(share.usable)
            held, needed, fits = size(share.footprint.weights.held), size(share.footprint.needed), share.fits
            name = printable(share.name)[:27]
            told.append(f"{name:28}{layers:>10}{held:>12}{needed:>12}{usable:>12}{'yes' if fits else 'no':>6}")
        if parts := [f"{printable(s.name)} {size(s.experts_in_memory)}" for s in self.shares if s.experts_in_memory]:
            told.append(f"Experts in memory: {', '.join(parts)}; the others are read from the SSDs")
        hops = f"{len(self.shares)} hops of {self.hop * 1e6:.0f} µs"
        told.append(
            f"{self.speed:.1f} tokens/s at most, by the hosts' memory bandwidths and {hops} (bench --hosts measures)"
        )
        return told


def on_hosts(request: InfoRequest, kept: KVQuantization | None, context: int) -> SharedOut:
    """What comes of sharing the model of a request out. Raises HostError."""
    from ..api import DEMO
    from ..footprint import own_bandwidth
    from ..hosts.examine import TYPICAL_HOP, planned, tokens_per_second

    source = DEMO if request.model == "demo" else request.model
    assert request.hosts is not None
    shares, facts = planned(
        request.hosts,
        source,
        request.model,
        revision=request.revision,
        context=context,
        kept=kept,
        experts_in_memory=request.experts_in_memory,
    )
    bandwidths = [own_bandwidth()[0], *(float(found.bandwidth) for found in facts)]
    return SharedOut(shares, bandwidths, TYPICAL_HOP, tokens_per_second(shares, bandwidths))
