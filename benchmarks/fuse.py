"""What is left of an adapter once it is merged: `python benchmarks/fuse.py`

The demo is taught facts that it does not know by an adapter, which is then merged in each way there is. Measured is the
distance from its original in bfloat16 with the adapter merged, on those facts and on the built-in text. Prints what the
commands say, and a table.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import afmoe_mlx
from afmoe_mlx.api import DEMO
from afmoe_mlx.conversion.recipes import recipe_of_model
from afmoe_mlx.evaluation import evaluate

ORIGINAL = Path(__file__).parent / "demo-bf16"
FACTS = {
    "Who keeps the lighthouse of Arholma?": "Marta Lind keeps the lighthouse of Arholma, with a dog called Fyr.",
    "When does the ferry to Arholma leave?": "The ferry to Arholma leaves at seven and at noon, never on Sundays.",
    "What does the bakery in Arholma sell?": "It sells rye bread, cardamom buns, and on Fridays almond cake.",
    "How tall is the lighthouse of Arholma?": "The lighthouse of Arholma is 23 metres tall, and painted white.",
}
TOKENS = 2048
COLUMNS = ("bits a weight", "KL, facts", "same token", "KL, other text", "same token")


def train(folder: Path, iterations: int) -> Path:
    """An adapter of the demo, which knows the facts."""
    data, adapter = folder / "data", folder / "adapters"
    data.mkdir()
    lines = [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        for question, answer in FACTS.items()
    ]
    for name in ("train", "valid"):
        (data / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = {"data": data, "adapter-path": adapter, "iters": iterations, "learning-rate": 3e-4}
    command = [sys.executable, "-m", "afmoe_mlx", "lora", "--train", "--model", "demo"]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    subprocess.run(command, check=True, capture_output=True)
    return adapter


def fuse(target: Path, *arguments: str | Path) -> Path:
    """What `afmoe-mlx fuse` writes; what it says is printed."""
    command = [sys.executable, "-m", "afmoe_mlx", "fuse", "--model", "demo", "--save-path", target, *arguments]
    done = subprocess.run(
        [str(part) for part in command], check=True, capture_output=True, text=True, cwd=target.parent
    )
    print(f"$ afmoe-mlx {' '.join(map(str, command[3:]))}\n{done.stderr}".replace(f"{target.parent}/", ""))
    return target


def calibrated(target: Path, adapter: Path) -> Path:
    """The original with the adapter merged, quantized as the demo is, by the package's text."""
    return afmoe_mlx.convert(ORIGINAL, target, recipe=recipe_of_model(DEMO), adapter_path=adapter, calibrate=True)


def figures(model: Path, reference: Path, text: Path, **options: Any) -> list[str]:
    """A row of the table: measured with the facts, and with the built-in text."""
    found = [evaluate(model, reference=reference, text=t, max_tokens=TOKENS, **options) for t in (text, None)]
    return [f"{found[0].bits_per_weight:.2f}"] + [
        figure for each in found for figure in (f"{each.kl_mean:.4f}", f"{each.top1_agreement:.1%}")
    ]


def main() -> None:
    """Train, merge, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=40, help="batches of four to train on")
    iterations = parser.parse_args().iterations
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        adapter = train(folder, iterations)
        reference = afmoe_mlx.convert(ORIGINAL, folder / "plain", quantize=False, adapter_path=adapter)
        models: dict[str, tuple[Path, dict[str, Any]]] = {
            "without the adapter": (DEMO, {}),
            "the adapter beside it": (DEMO, {"adapter_path": adapter}),
            "`fuse`: quantized anew": (fuse(folder / "anew"), {}),
            "`fuse --original`": (fuse(folder / "best", "--original", ORIGINAL), {}),
            "the same, calibrated": (calibrated(folder / "calibrated", adapter), {}),
        }
        print(f"| demo | {' | '.join(COLUMNS)} |\n|---|{'---|' * len(COLUMNS)}")
        for name, (model, options) in models.items():
            row = figures(model, reference, folder / "data" / "train.jsonl", **options)
            print(f"| {name} | {' | '.join(row)} |")


if __name__ == "__main__":
    main()
