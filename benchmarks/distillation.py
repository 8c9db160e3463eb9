"""What learning from the original adds to GPTQ, beside mlx_lm.dwq: `python benchmarks/distillation.py`

The demo's source, one text for all, of dialogues like those it was trained on, measured on questions that were held out
of its training, with answers. Prints a table; its last column is against GPTQ's divergence.

mlx-lm's models train in float32 and multiply by dequantized weights: MLX's CPU kernels for few bits give the same
numbers and take several times as long, and those for bfloat16 many times.
"""

import argparse
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

from quantization_quality import COLUMNS, DEMO, DIALOGUES, Study, Variant, held_out_dialogues, row, write_lines

from afmoe_mlx.calibration import Calibration
from afmoe_mlx.calibration.text import ROW, read_rows
from afmoe_mlx.demo.corpus import Writer
from afmoe_mlx.evaluation import Evaluation
from afmoe_mlx.tokenizer import Tokenizer

OURS = (Variant("GPTQ", method="gptq"), Variant("distilled", method="distil"))
VALID = 32
"""Rows that mlx_lm.dwq tells its loss of."""


def dwq(study: Study, bits: int, tokens: int, rate: float, passes: int) -> Evaluation:
    """A model that mlx_lm.dwq has trained on the text at a learning rate, gone through so often."""
    import mlx.core as mx
    from mlx.optimizers import Adam
    from mlx.utils import tree_map_with_path
    from mlx_lm.quant.dwq import dwq_quantize
    from mlx_lm.utils import load, quantize_model, save

    assert study.calibration is not None
    rows = read_rows(Calibration(text=study.calibration, tokens=tokens), Tokenizer.from_folder(DEMO))
    samples = [(ids, 0) for ids in rows]
    teacher, tokenizer, config = load(study.source, return_config=True)
    model, *_ = load(study.source)
    for each in (teacher, model):
        each.set_dtype(mx.float32)
    model, config = quantize_model(model, config, 64, bits)
    train, valid = samples[VALID:] * passes, samples[:VALID]

    def targets(batch: Any, index: int, split: str) -> Any:
        return teacher(batch)

    with mock.patch.multiple(mx, quantized_matmul=_product, gather_qmm=_gathered):
        dwq_quantize(model, targets, Adam(rate, bias_correction=True), train, valid, 4, ROW + 1, 0, dtype=mx.float32)
    model.update(tree_map_with_path(_stored, model.parameters()))
    target = study.folder / "dwq"
    save(target, study.source, model, tokenizer, config)
    return study.measure(target)


def _stored(name: str, array: Any) -> Any:
    import mlx.core as mx

    return array if array.dtype == mx.uint32 or name.endswith("expert_bias") else array.astype(mx.bfloat16)


def _product(x: Any, weight: Any, scales: Any, biases: Any, transpose: bool = True, **how: Any) -> Any:
    import mlx.core as mx

    plain = mx.dequantize(weight, scales, biases, **how)
    return x @ (plain.T if transpose else plain)


def _gathered(x: Any, weight: Any, scales: Any, biases: Any, **how: Any) -> Any:
    import mlx.core as mx

    format_ = {name: how[name] for name in ("group_size", "bits", "mode")}
    plain = mx.dequantize(weight, scales, biases, **format_).swapaxes(-1, -2)
    return mx.gather_mm(x, plain, rhs_indices=how["rhs_indices"], sorted_indices=how["sorted_indices"])


def table(study: Study, bits: int, tokens: int, rates: list[float], passes: int) -> Iterator[str]:
    """The lines for one number of bits."""
    gptq = study.ours(OURS[0], bits, tokens=tokens)
    yield row(f"{bits} bits, GPTQ", gptq, gptq)
    yield row(f"{bits} bits, distilled", study.ours(OURS[1], bits, tokens=tokens), gptq)
    for rate in rates:
        yield row(f"{bits} bits, mlx_lm.dwq at {rate:g}", dwq(study, bits, tokens, rate, passes), gptq)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3])
    parser.add_argument("--tokens", type=int, default=32768, help="of the text")
    parser.add_argument(
        "--rates", type=float, nargs="*", default=[1e-5, 3e-5, 1e-4], help="learning rates of mlx_lm.dwq"
    )
    parser.add_argument("--passes", type=int, default=1, help="of mlx_lm.dwq through the text")
    options = parser.parse_args()
    print(f"| | {' | '.join((*COLUMNS[:-1], 'KL ÷ GPTQ'))} |")
    print(f"|---|{'---:|' * len(COLUMNS)}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        text = write_lines(folder / "training.jsonl", islice(Writer(5).dialogues(), DIALOGUES))
        held_out = write_lines(folder / "held-out.jsonl", held_out_dialogues())
        study = Study(str(DEMO), text, held_out, folder, None)
        for bits in options.bits:
            for line in table(study, bits, options.tokens, options.rates, options.passes):
                print(line, flush=True)


if __name__ == "__main__":
    main()
