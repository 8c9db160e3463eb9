"""Prints what docs/tuning.md shows of Macs: `python docs/make_tuning_table.py`

For each model in 4 bits and each size of memory: the longest rows that a training on it has room for, one row a batch,
LoRA of rank 8 of attention, dense and shared MLPs, with `--grad-checkpoint`, and without.
"""

import mlx.core as mx
from make_mac_table import MODELS

from afmoe_mlx.footprint import Footprint, Mac
from afmoe_mlx.models import CausalLM, make_model, read_config
from afmoe_mlx.models.shapes import shape
from afmoe_mlx.terminal import size
from afmoe_mlx.training.memory import trained_bytes, training_memory
from afmoe_mlx.training.optimizers import OptimizerName
from afmoe_mlx.training.training import Options, start

GIGABYTES = (8, 16, 24, 32, 64, 128)
LENGTHS = tuple(1 << n for n in range(8, 16))


def main() -> None:
    print("| | the adapter | " + " | ".join(f"{count} GB" for count in GIGABYTES) + " |")
    print("|---|---|" + "---|" * len(GIGABYTES))
    for title, name in MODELS.items():
        config = read_config(shape(name))
        weights = Footprint.of_conversion(config, bits=4, context=0).weights.held
        model = make_model(config)
        model.dtype = mx.bfloat16
        start(model, Options())
        cells = [_longest(model, weights, Mac("M4", count).usable) for count in GIGABYTES]
        if any(cell != "–" for cell in cells):
            print(f"| {title} | {size(sum(trained_bytes(model).values()))} | {' | '.join(cells)} |")


def _longest(model: CausalLM, weights: int, usable: int) -> str:
    """The most columns with activations computed again, and in brackets with all of them kept."""
    found = []
    for recomputes in (True, False):
        model.recomputes = recomputes
        needs = {n: training_memory(model, weights, 1, n, OptimizerName.adam, accumulates=False).peak for n in LENGTHS}
        found.append(max((n for n, peak in needs.items() if peak <= usable), default=0))
    again, kept = found
    if not again:
        return "–"
    return f"{again:,}" + (f" ({kept:,})" if kept else "")


if __name__ == "__main__":
    main()
