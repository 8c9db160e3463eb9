"""How many operations a decode step has a layer, ours and mlx-lm's: `python benchmarks/op_census.py`

Trinity Nano's 56 layers at a hidden size of 64, on this device. Primitives of the graph of one step, views left out
(they move no data); a compiled kernel counts once. On the CPU `mx.fast` operations are counted as their parts.
"""

from collections import Counter
from typing import Any

import mlx.core as mx
from narrow import narrow_pair
from operations import operations

BAR = 0.55


def step_operations(model: Any, cache: Any) -> Counter[str]:
    """The operations of one greedy step past the window's beginning."""
    token = mx.array([1])
    for _ in range(8):
        token = mx.argmax(model(token[:, None], cache=cache)[:, -1], axis=-1)
        mx.eval(token)
    return operations(mx.argmax(model(token[:, None], cache=cache)[:, -1], axis=-1))


def main() -> None:
    ours, theirs = narrow_pair()
    layers = len(ours.model.layers)
    peer = step_operations(theirs, theirs.make_cache())
    rows = {"mlx-lm": peer}
    for compiles, name in ((False, "ours, not compiled"), (True, "ours, compiled")):
        ours.compiles_decode = compiles
        rows[name] = step_operations(ours, ours.make_cache())
    print(f"operations a layer of a decode step ({mx.default_device()}); the bar is {BAR} x mlx-lm's")
    for name, counts in rows.items():
        print(f"{name:20} {counts.total() / layers:6.1f}  {counts.total() / peer.total():.2f} x")
    for name, counts in rows.items():
        print(f"\n{name}: " + ", ".join(f"{op} {n / layers:.1f}" for op, n in counts.most_common() if n >= layers / 8))


if __name__ == "__main__":
    main()
