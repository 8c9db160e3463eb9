"""Prints what docs/experts.md shows of Macs: `python docs/make_experts_table.py`

For each model in 4 bits and each Mac that does not hold all of it: the experts that fit beside the other weights, the
cache of 4,096 tokens and half a gigabyte to work in, and what is to be expected of the others, which are read.
"""

from make_mac_table import MODELS

from afmoe_mlx.footprint import MACS, ExpertMemory, Footprint, Mac, with_experts
from afmoe_mlx.models import ModelConfig, read_config
from afmoe_mlx.models.shapes import shape
from afmoe_mlx.terminal import size

CONTEXT, SMALLEST_SHARE = 4096, 0.05


def main() -> None:
    print("| | Mac | experts in memory | of a layer's | read a token | a prompt | tokens/s |")
    print("|---|---|---|---|---|---|---|")
    for title, name in MODELS.items():
        config = read_config(shape(name))
        whole = Footprint.of_conversion(config, bits=4, context=CONTEXT)
        experts = ExpertMemory.of_conversion(config, bits=4)
        for mac in MACS:
            if whole.needed > mac.usable and (row := _row(config, mac, whole, experts)):
                print(f"| {title} | {mac.chip}, {mac.gigabytes} GB | {row} |")


def _row(config: ModelConfig, mac: Mac, whole: Footprint, experts: ExpertMemory) -> str | None:
    """What a Mac holds and gives; None where it is too small to be of use."""
    part = with_experts(whole, experts, "auto", mac.usable)
    if part.experts is None or part.experts.placement is None or part.needed > mac.usable:
        return None
    held, placement = part.experts, part.experts.placement
    share = held.resident / held.total
    if share < SMALLEST_SHARE:
        return None
    layers = f", all in {placement.whole_layers} layers" if placement.whole_layers else ""
    cells = (
        f"{size(held.resident)}, {share:.0%}",
        f"{placement.slots} of {config.num_experts}{layers}",
        size(held.read_per_token),
        f"{held.read_per_prompt / mac.ssd:.1f} s",
        f"{part.streamed_tokens_per_second(mac.bandwidth, mac.ssd):.1f}",
    )
    return " | ".join(cells)


if __name__ == "__main__":
    main()
