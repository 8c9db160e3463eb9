"""What a model loses in few bits, by how they are chosen: `python benchmarks/quantization_quality.py`

By default the demo's source, calibrated with dialogues like those it was trained on and measured on questions that were
held out of its training, with answers; with --source another model, and texts of the packages' own unless others are
given. Everything is measured against the source in float32 on the CPU, else in its own number format. Prints a table
of methods, and one of calibration texts of several sizes, with the experts alone quantized, each the mean over seeds.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean, stdev

from afmoe_mlx import convert
from afmoe_mlx.calibration import Calibration
from afmoe_mlx.evaluation import Evaluation, evaluate

HERE = Path(__file__).parent
DEMO = HERE / "demo-bf16"
RECIPES = HERE / "recipes"
EXPERTS = "demo_experts_{}bit.toml"
BITS = (4, 3)
SIZES = {64: 4, 256: 4, 1024: 1, 4096: 1}
"""Tokens of calibration text, and how many times --seeds are measured: what a small text gives varies more."""
DIALOGUES = 1500
COLUMNS = ("KL mean", "KL 99 %", "same token", "experts", "bits a weight", "KL ÷ mlx-lm's")


@dataclass(frozen=True)
class Variant:
    """One way to quantize."""

    name: str
    recipe: str | None = None
    """A file in `recipes`, in place of the same bits throughout."""
    method: str | None = None
    """Of calibration; None for plain rounding."""
    all_experts: bool = True


@dataclass(frozen=True)
class Study:
    """A model, and the texts it is calibrated with and measured on."""

    source: str
    calibration: Path | None
    held_out: Path | None
    folder: Path
    tokens: int | None

    def measure(self, model: Path) -> Evaluation:
        """Compare a conversion with its source, and remove it."""
        found = evaluate(model, reference=self.source, text=self.held_out, max_tokens=self.tokens)
        shutil.rmtree(model)
        return found

    def ours(self, variant: Variant, bits: int, *, tokens: int = 16384, seed: int = 0) -> Evaluation:
        """A variant's figures."""
        calibration = variant.method and Calibration(
            text=self.calibration, method=variant.method, all_experts=variant.all_experts, tokens=tokens, seed=seed
        )
        recipe = str(RECIPES / variant.recipe.format(bits)) if variant.recipe else f"{bits}bit"
        return self.measure(convert(self.source, self.folder / "ours", recipe=recipe, calibrate=calibration or None))

    def mlx_lm(self, bits: int) -> Evaluation:
        """What `mlx_lm.convert` makes by default, but for the bits."""
        target = self.folder / "mlx-lm"
        options = ["--hf-path", self.source, "--mlx-path", str(target), "-q", "--q-bits", str(bits)]
        subprocess.run([sys.executable, "-m", "mlx_lm", "convert", *options], check=True, stdout=subprocess.DEVNULL)
        return self.measure(target)


def variants(recipes: bool) -> list[Variant]:
    found = [
        Variant("rounded"),
        Variant("scales", method="scales"),
        Variant("GPTQ", method="gptq"),
        Variant("GPTQ, routed tokens only", method="gptq", all_experts=False),
    ]
    recipe = "demo_{}bit.toml"
    mixed = [
        Variant("mixed bits, rounded", recipe),
        Variant("mixed bits, scales", recipe, method="scales"),
        Variant("mixed bits, GPTQ", recipe, method="gptq"),
    ]
    return found + mixed if recipes else found


def row(name: str, found: Evaluation, theirs: Evaluation) -> str:
    overlap = "" if found.expert_overlap is None else f"{100 * found.expert_overlap:.1f} %"
    cells = (
        f"{found.kl_mean:.5f}",
        f"{found.kl_p99:.4f}",
        f"{100 * found.top1_agreement:.1f} %",
        overlap,
        f"{found.bits_per_weight:.3f}",
        f"{found.kl_mean / theirs.kl_mean:.2f}",
    )
    return f"| {name} | {' | '.join(cells)} |"


def methods(study: Study, *, recipes: bool) -> Iterator[str]:
    """The table of methods, a line at a time."""
    yield f"| | {' | '.join(COLUMNS)} |"
    yield f"|---|{'---:|' * len(COLUMNS)}"
    for bits in BITS:
        theirs = study.mlx_lm(bits)
        yield row(f"**{bits} bits**, mlx-lm", theirs, theirs)
        for variant in variants(recipes):
            yield row(f"{bits} bits, {variant.name}", study.ours(variant, bits), theirs)


def sizes(study: Study, seeds: int, method: str) -> Iterator[str]:
    """The table of calibration texts' sizes: mean KL with all experts, with routed tokens only, and the mean of seeds'
    ratios with its standard error."""
    yield "| tokens | every expert sees every token | routed tokens only | ratio |"
    yield "|---|---:|---:|---:|"
    ways = [Variant("", EXPERTS, method=method, all_experts=all_experts) for all_experts in (True, False)]
    for tokens, times in SIZES.items():
        found = [
            [divergence(study.ours(way, 3, tokens=tokens, seed=seed)) for way in ways] for seed in range(times * seeds)
        ]
        means = [fmean(values) for values in zip(*found, strict=True)]
        ratios = [ours / routed for ours, routed in found]
        error = stdev(ratios) / len(ratios) ** 0.5
        yield f"| {tokens:,} | {means[0]:.5f} | {means[1]:.5f} | {fmean(ratios):.3f} ± {error:.3f} |"


def divergence(found: Evaluation) -> float:
    assert found.kl_mean is not None, "there is a reference"
    return found.kl_mean


def write_lines(path: Path, dialogues: Iterable[object]) -> Path:
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in dialogues), encoding="utf-8")
    return path


def held_out_dialogues() -> Iterator[list[dict[str, str]]]:
    """One question of every family that the demo was not trained on, with its answer."""
    from afmoe_mlx.demo.facts import all_facts

    for fact in all_facts():
        for family in fact.families:
            if family.held_out:
                question = random.Random(family.name).choice(family.questions)
                yield [{"role": "user", "content": question}, {"role": "assistant", "content": fact.answer}]


def main() -> None:
    from afmoe_mlx.demo.corpus import Writer

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", default=str(DEMO), help="a folder or a Hub id, unquantized")
    parser.add_argument("--calibration", type=Path, help="a text, by default the package's, or the demo's dialogues")
    parser.add_argument("--default-text", action="store_true", help="calibrate the demo with the package's text")
    parser.add_argument("--held-out", type=Path, help="a text to measure on")
    parser.add_argument("--tokens", type=int, help="of the text to measure on")
    parser.add_argument("--seeds", type=int, default=3, help="of each size of calibration text, 2 or more; 0: no table")
    parser.add_argument("--sizes-method", choices=("gptq", "scales"), default="gptq", help="of the second table")
    parser.add_argument("--sizes-only", action="store_true", help="the second table alone")
    options = parser.parse_args()
    if options.seeds == 1:
        parser.error("--seeds 1 has no error to tell: give 0, or 2 or more")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        is_demo = options.source == str(DEMO)
        calibration, held_out = options.calibration, options.held_out
        if is_demo and not (calibration or options.default_text):
            calibration = write_lines(folder / "training.jsonl", islice(Writer(5).dialogues(), DIALOGUES))
        if is_demo:
            held_out = held_out or write_lines(folder / "held-out.jsonl", held_out_dialogues())
        study = Study(options.source, calibration, held_out, folder, options.tokens)
        for line in () if options.sizes_only else methods(study, recipes=is_demo):
            print(line, flush=True)
        if options.seeds:
            print()
            for line in sizes(study, options.seeds, options.sizes_method):
                print(line, flush=True)


if __name__ == "__main__":
    main()
