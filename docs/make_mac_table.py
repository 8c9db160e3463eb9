"""Prints what docs/models.md shows of Macs: `python docs/make_mac_table.py`

Needed are the weights as our converter writes them in 4 bits, the cache of a conversation of 32,768 tokens, and half a
gigabyte to work in. The last column: the smallest Mac that has room for an eighth of the experts, with the others read
from its SSD. A Mac gives its GPU about two thirds of its memory, three quarters from 36 GB on.
"""

from afmoe_mlx.footprint import MACS, ExpertMemory, Footprint, with_experts
from afmoe_mlx.models import read_config
from afmoe_mlx.models.shapes import shape
from afmoe_mlx.terminal import size

CONTEXT = 32_768
MODELS = {
    "Trinity Nano": "trinity-nano",
    "LFM2-8B-A1B": "lfm2-8b-a1b",
    "Trinity Mini": "trinity-mini",
    "Trinity Large": "trinity-large",
}


def main() -> None:
    print("| | weights, 4 bits | cache at 32k tokens | needs | a Mac with | or, with experts from the SSD |")
    print("|---|---|---|---|---|---|")
    for title, name in MODELS.items():
        model = Footprint.of_conversion(read_config(shape(name)), bits=4, context=CONTEXT)
        sizes = (size(count) for count in (model.weights.held, model.cache_bytes, model.needed))
        gigabytes = min(mac.gigabytes for mac in MACS if model.needed <= mac.usable)
        print(f"| {title} | {' | '.join(sizes)} | {gigabytes} GB or more | {_with_less(name, model) or '-'} |")


def _with_less(name: str, model: Footprint) -> str | None:
    """The smallest Mac that has room for an eighth of the experts, and the speed to expect there."""
    experts = ExpertMemory.of_conversion(read_config(shape(name)), bits=4)
    for mac in MACS:
        part = with_experts(model, experts, "auto", mac.usable)
        if part.experts is not None and part.needed <= mac.usable and part.experts.resident >= experts.total / 8:
            speed = part.streamed_tokens_per_second(mac.bandwidth, mac.ssd)
            return f"{mac.gigabytes} GB ({mac.chip}), about {speed:.0f} tokens/s"
    return None


if __name__ == "__main__":
    main()
