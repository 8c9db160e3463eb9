"""What adapters take of memory is known before a model is loaded, and counted where it is checked."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from afmoe_mlx import device, load, load_model
from afmoe_mlx.errors import FitError
from afmoe_mlx.training.apply import adapting
from afmoe_mlx.training.size import counting
from helpers.adapters import arrays, save, targets
from helpers.command_line import invoke
from helpers.tiny import ARCHITECTURES, tiny_folder


def adapter_of(folder: Path, source: Path, model_type: str, *, kind: str = "lora", experts: bool = True) -> Path:
    shapes = targets(load_model(source, fuse=False)[0], model_type, experts=experts)
    return save(folder, arrays(shapes, dora=kind == "dora"), kind)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@pytest.mark.parametrize(("kind", "experts"), [("lora", False), ("lora", True), ("dora", False)])
def test_it_is_what_a_loaded_model_has(tmp_path: Path, model_type: str, kind: str, experts: bool) -> None:
    source = tiny_folder(tmp_path / "model", model_type)
    paths = [adapter_of(tmp_path / kind, source, model_type, kind=kind, experts=experts)] * (1 + (kind == "lora"))
    model, config = load_model(source, adapt=adapting(paths))
    parameters = dict(tree_flatten(model.parameters()))
    held = sum(array.nbytes for name, array in parameters.items() if ".lora_" in name)
    told, read = counting(paths)(config, mx.float32)
    assert told == held > 0
    assert read < told if experts else read == told


def test_a_model_is_refused_that_fits_without_its_adapter_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny_folder(tmp_path / "model")
    adapter = adapter_of(tmp_path / "adapter", source, "afmoe")

    def info(*options: str) -> dict[str, Any]:
        return json.loads(invoke(["info", str(source), "--json", *options]).stdout)

    plain, adapted = info(), info("--adapter-path", str(adapter))
    assert adapted["adapter_bytes"] == adapted["needed_bytes"] - plain["needed_bytes"] > 0
    needed = adapted["this_machine"]["needed_bytes"]
    monkeypatch.setattr(device, "memory", lambda: device.Memory(needed, needed))
    load(source, context=plain["context"], adapter_path=adapter)
    monkeypatch.setattr(device, "memory", lambda: device.Memory(needed - 1, needed - 1))
    load(source, context=plain["context"])
    with pytest.raises(FitError, match=r"weights .*, adapters .*, cache"):
        load(source, context=plain["context"], adapter_path=adapter)
