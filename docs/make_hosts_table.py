"""Prints what docs/hosts.md shows of several Macs: `python docs/make_hosts_table.py`

For each model in 4 bits and some sets of Macs: the layers of each, what it needs of what it has for them, with a cache
of 4,096 tokens, and the speed that the bandwidths of their memories and hops of 300 µs allow at most.
"""

from pathlib import Path

import mlx.core as mx
from make_mac_table import MODELS

from afmoe_mlx.checkpoint.files import DTYPES, StoredTensor
from afmoe_mlx.footprint import MACS, Mac
from afmoe_mlx.footprint.weights import converted_arrays
from afmoe_mlx.hosts.examine import tokens_per_second
from afmoe_mlx.hosts.plan import Needs, plan
from afmoe_mlx.models import read_config
from afmoe_mlx.models.shapes import shape
from afmoe_mlx.terminal import size

SETS = (
    ("M1 8", "M1 8"),
    ("M2 16", "M2 16"),
    ("M4 24", "M2 16"),
    ("M4 Max 128", "M4 Max 128"),
    ("M2 Ultra 192", "M2 Ultra 192"),
    ("M4 Max 128", "M4 Max 128", "M4 Max 128"),
    ("M2 Ultra 192", "M4 Max 128"),
)
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def main() -> None:
    print("| model in 4 bits | Macs | layers | needs, of what each has | fits | tokens/s at most |")
    print("|---|---|---|---|---|---|")
    macs = {f"{mac.chip} {mac.gigabytes}": mac for mac in MACS}
    for title, name in MODELS.items():
        config = read_config(shape(name))
        arrays = converted_arrays(config, mx.bfloat16, bits=4)
        headers = {key: StoredTensor(Path("model.safetensors"), a.shape, NAMES[a.dtype]) for key, a in arrays.items()}
        needs = Needs(config, headers, mx.bfloat16)
        for names in SETS:
            if row := _row(needs, [macs[name] for name in names]):
                print(f"| {title} | {row} |")


def _row(needs: Needs, macs: list[Mac]) -> str | None:
    """What Macs hold together; None where one of them could hold it all, or all together are far too small."""
    whole = needs.of(range(needs.config.num_hidden_layers)).needed
    if any(whole <= mac.usable for mac in macs) or whole > 1.25 * sum(mac.usable for mac in macs):
        return None
    shares = plan(needs, [(mac.chip, mac.usable) for mac in macs])
    fits = all(share.fits for share in shares)
    speed = tokens_per_second(shares, [mac.bandwidth for mac in macs])
    cells = (
        " + ".join(f"{mac.chip}, {mac.gigabytes} GB" for mac in macs),
        " + ".join(str(len(share.part)) for share in shares),
        ", ".join(f"{size(share.footprint.needed)} of {size(share.usable or 0)}" for share in shares),
        "yes" if fits else "no",
        f"{speed:.0f}" if fits else "",
    )
    return " | ".join(cells)


if __name__ == "__main__":
    main()
