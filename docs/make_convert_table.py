"""Prints what docs/convert.md shows of Trinity Mini, a table or a dry run: `python docs/make_convert_table.py [RECIPE]`

Without RECIPE: the sizes by all built-in ones and by the file beside this script, and what a model of that size needs
with the cache of a conversation of 32,768 tokens and half a gigabyte to work in. With one: what `--dry-run` prints.
Both come from the model's config alone.
"""

import json
import sys
import tempfile
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from afmoe_mlx.checkpoint.files import StoredTensor
from afmoe_mlx.conversion.dry_run import as_text, describe
from afmoe_mlx.conversion.hub_layout import hub_tensors
from afmoe_mlx.conversion.job import Options, make_job
from afmoe_mlx.conversion.recipes import BUILT_IN
from afmoe_mlx.footprint import MACS, Footprint
from afmoe_mlx.models import make_model, read_config
from afmoe_mlx.models.shapes import shape
from afmoe_mlx.terminal import size

MODEL, CONTEXT = "trinity-mini", 32_768
RECIPE_FILE = Path(__file__).with_name("trinity-mini-16gb.toml")


@dataclass(frozen=True)
class Published:
    """A model as it was published, in bfloat16, of which there are only the config and the headers."""

    folder: Path
    headers: dict[str, StoredTensor]

    @classmethod
    def of_shape(cls, folder: Path, raw: dict[str, Any]) -> "Published":
        (folder / "config.json").write_text(json.dumps(raw))
        headers = {}
        for ours, array in tree_flatten(make_model(read_config(raw)).parameters()):
            dtype = "F32" if ours.endswith("expert_bias") else "BF16"
            for name, its_shape in hub_tensors(ours, array.shape, raw["model_type"]):
                headers[name] = StoredTensor(folder / "model.safetensors", its_shape, dtype)
        return cls(folder, headers)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        source: Any = Published.of_shape(Path(folder), shape(MODEL))
        if recipes := sys.argv[1:]:
            options = Options(recipe=recipes[0])
            print(as_text(describe("trinity-mini", source, make_job(source, options))), end="")
        else:
            print_table(source)


def print_table(source: Any) -> None:
    print("| recipe | on disk | bits a weight | needs to run | on a Mac with |\n|---|---|---|---|---|")
    for name in (None, *BUILT_IN, str(RECIPE_FILE)):
        job = make_job(source, Options(quantize=False, recipe=name))
        bits = 8 * job.plan.nbytes / sum(prod(parameter.shape) for parameter in job.parameters.values())
        footprint = Footprint.of_conversion(job.config, bits=None, context=CONTEXT, dtype=mx.bfloat16)
        needed = replace(footprint, weights=replace(footprint.weights, held=job.plan.nbytes)).needed
        gigabytes = min(mac.gigabytes for mac in MACS if needed <= mac.usable)
        title = f"`{Path(name).name}`" if name else "none: bfloat16"
        print(f"| {title} | {size(job.plan.nbytes)} | {bits:.2f} | {size(needed)} | {gigabytes} GB or more |")


if __name__ == "__main__":
    main()
