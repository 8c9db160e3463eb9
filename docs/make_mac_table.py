"""Prints the README's table of which Mac runs which model: `python docs/make_mac_table.py`

Needed are the 4-bit weights, the cache of a conversation of 32,768 tokens, and half a gigabyte to work in. A Mac gives
its GPU about two thirds of its memory, three quarters from 48 GB on.
"""

from dataclasses import dataclass

CONTEXT = 32_768
WORKSPACE = 500_000_000
SLACK = 1024
MACS = (8, 16, 24, 32, 48, 64, 96, 128, 256, 512)


@dataclass(frozen=True)
class Model:
    name: str
    weights: int
    """Bytes in 4 bits, as `afmoe-mlx models` computes them."""
    full: int
    sliding: int
    """Layers that remember everything, and those that remember `window` tokens."""
    window: int
    key_bytes: int
    """Of one token's keys and values in one layer, in bfloat16."""

    def cache(self, tokens: int) -> int:
        held = min(tokens, self.window - 1 + SLACK)
        return self.key_bytes * (self.full * tokens + self.sliding * held)


MODELS = (
    Model("Trinity Nano", 3_453_038_080, 14, 42, 2048, 2 * 2 * 2 * 128),
    Model("LFM2-8B-A1B", 4_693_588_864, 6, 0, 0, 2 * 2 * 8 * 64),
    Model("Trinity Mini", 14_706_437_632, 8, 24, 2048, 2 * 2 * 4 * 128),
    Model("Trinity Large", 224_294_501_376, 15, 45, 4096, 2 * 2 * 8 * 128),
)


def main() -> None:
    print("| | weights, 4 bits | cache at 32k tokens | needs | a Mac with |\n|---|---|---|---|---|")
    for model in MODELS:
        cache = model.cache(CONTEXT)
        needed = model.weights + cache + WORKSPACE
        mac = next(gigabytes for gigabytes in MACS if needed <= usable(gigabytes))
        sizes = (f"{size / 1e9:.1f} GB" for size in (model.weights, cache, needed))
        print(f"| {model.name} | {' | '.join(sizes)} | {mac} GB or more |")


def usable(gigabytes: int) -> float:
    return (gigabytes << 30) * (3 / 4 if gigabytes >= 48 else 2 / 3)


if __name__ == "__main__":
    main()
