"""An adapter gives a model, fused or not, what it gives mlx-lm's, and its merged weights."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from afmoe_mlx import load, load_model
from afmoe_mlx.cache.fingerprint import fingerprint
from afmoe_mlx.errors import AdapterError
from afmoe_mlx.evaluation import evaluate
from afmoe_mlx.training.apply import adapting
from benchmarks.operations import operations
from helpers.adapters import RANK, SCALE, arrays, save, targets, theirs
from helpers.experts import WIDE, streamed, wide_folder
from helpers.pairs import quantized_folder
from helpers.tiny import ARCHITECTURES, tiny_folder, tokens

IDS = tokens(2, 12)

FORMATS: dict[str, dict[str, Any]] = {"float32": {"dtype": mx.float32}, "4 bits": {"bits": 4, "group_size": 32}}


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("experts", [False, True], ids=["", "experts"])
def test_fused_unfused_and_merged_are_alike(tmp_path: Path, model_type: str, name: str, experts: bool) -> None:
    folder = wide_folder(tmp_path / "model", model_type, **FORMATS[name])
    plain = load_model(folder, fuse=False)[0]
    tensors = arrays(targets(plain, model_type, experts=experts))
    adapter = save(tmp_path / "adapter", tensors)
    unfused, fused = (load_model(folder, fuse=fuse, adapt=adapting([adapter]))[0] for fuse in (False, True))
    expected = unfused(IDS)
    assert mx.abs(expected - plain(IDS)).max().item() > 0.01
    assert mx.abs(fused(IDS) - expected).max().item() < 2e-5
    cache = fused.make_cache()
    fused.compiles_decode = True
    mx.disable_compile()  # that compiled parts compute what they are made of is tested elsewhere
    try:
        steps = mx.concatenate([fused(IDS[:, i : i + 1], cache=cache) for i in range(IDS.shape[1])], axis=1)
    finally:
        mx.enable_compile()
    assert mx.abs(steps - expected).max().item() < 2e-5
    if name == "float32":
        merged = dict(tree_flatten(plain.parameters()))
        for path in {key.rpartition(".")[0] for key in tensors}:
            a, b = tensors[f"{path}.lora_a"], tensors[f"{path}.lora_b"]
            delta = (b @ a) if a.ndim == 3 else (a @ b).T
            merged[f"{path}.weight"] = merged[f"{path}.weight"] + SCALE * delta
        plain.load_weights(list(merged.items()))
        assert mx.abs(plain(IDS) - expected).max().item() < 2e-5


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("make", [tiny_folder, quantized_folder], ids=["float32", "4 bits"])
def test_mlx_lm_reads_the_same_adapter_alike(tmp_path: Path, model_type: str, kind: str, make: Any) -> None:
    pytest.importorskip("mlx_lm")
    folder = make(tmp_path / "model", model_type)
    plain = load_model(folder, fuse=False)[0]
    shapes = targets(plain, model_type, experts=kind == "lora")
    adapter = save(tmp_path / "adapter", arrays(shapes, dora=kind == "dora"), kind)
    ours = load_model(folder, adapt=adapting([adapter]))[0]
    assert mx.abs(ours(IDS) - theirs(folder, adapter)(IDS)).max().item() < 2e-5


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@pytest.mark.parametrize("dora", [False, True])
def test_pefts_names_are_those_of_transformers(tmp_path: Path, model_type: str, dora: bool) -> None:
    folder = tiny_folder(tmp_path / "model", model_type)
    shapes = targets(load_model(folder, fuse=False)[0], model_type, experts=False)
    tensors = arrays(shapes, dora=dora)
    own = save(tmp_path / "own", tensors, "dora" if dora else "lora")
    renamed = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"} if model_type == "lfm2_moe" else {}
    theirs = {}
    for name, array in tensors.items():
        path, _, kind = name.rpartition(".")
        parent, _, last = path.rpartition(".")
        name = f"base_model.model.{parent}.{renamed.get(last, last)}"
        suffix = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight", "m": "lora_magnitude_vector"}[kind]
        theirs[f"{name}.{suffix}"] = array.T if array.ndim == 2 else array
    peft = tmp_path / "peft"
    peft.mkdir()
    (peft / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": SCALE * RANK, "use_dora": dora, "bias": "none"})
    )
    mx.save_safetensors(str(peft / "adapter_model.safetensors"), {n: mx.contiguous(a) for n, a in theirs.items()})
    a, b = (load_model(folder, adapt=adapting([path]))[0](IDS) for path in (own, peft))
    assert mx.abs(a - b).max().item() < 2e-5


def test_adapters_add_up_and_are_scaled(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    shapes = targets(load_model(folder, fuse=False)[0], "afmoe", experts=True)
    one, two = (save(tmp_path / str(seed), arrays(shapes, seed=seed)) for seed in (1, 2))
    plain = load_model(folder)[0](IDS)
    found = {
        "one": load(folder, adapter_path=one)[0](IDS),
        "both": load(folder, adapter_path=[one, two])[0](IDS),
        "twice": load(folder, adapter_path=[one, one])[0](IDS),
        "scaled": load(folder, adapter_path=str(one), adapter_scale=2)[0](IDS),
        "none": load(folder, adapter_path=one, adapter_scale=0.0)[0](IDS),
    }
    assert mx.abs(found["twice"] - found["scaled"]).max().item() < 2e-5
    assert mx.abs(found["none"] - plain).max().item() < 2e-5
    assert mx.abs(found["both"] - found["one"]).max().item() > 0.01


def test_weights_that_an_adapter_has_whole_are_replaced(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    plain = load_model(folder, fuse=False)[0]
    changed = {name: array + 0.1 for name, array in tree_flatten(plain.parameters()) if name.endswith("o_proj.weight")}
    adapter = save(tmp_path / "adapter", changed, "full")
    plain.load_weights(list(changed.items()), strict=False)
    assert mx.abs(load(folder, adapter_path=adapter)[0](IDS) - plain(IDS)).max().item() < 2e-5


def test_a_prefix_cache_is_of_its_adapter(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    shapes = targets(load_model(folder, fuse=False)[0], "afmoe", experts=False)
    adapter = save(tmp_path / "adapter", arrays(shapes))
    assert len({fingerprint(load(folder, adapter_path=path)[0]) for path in (None, adapter)}) == 2


def test_experts_from_the_ssd_take_adapters_of_all_else(tmp_path: Path) -> None:
    folder = wide_folder(tmp_path / "model", "afmoe", dtype=mx.float32)
    plain = load_model(folder, fuse=False)[0]
    whole, part = (arrays(targets(plain, "afmoe", experts=experts)) for experts in (True, False))
    adapter = save(tmp_path / "adapter", part)
    expected = load_model(folder, adapt=adapting([adapter]))[0](IDS)
    found = streamed(folder, WIDE["num_experts"] // 2, adapt=adapting([adapter]))
    assert mx.abs(found(IDS) - expected).max().item() < 2e-5
    with pytest.raises(AdapterError, match="all of them in memory"):
        streamed(folder, WIDE["num_experts"] // 2, adapt=adapting([save(tmp_path / "whole", whole)]))


BREAKS: dict[str, Any] = {
    "no config": lambda folder: (folder / "adapter_config.json").unlink(),
    "no weights": lambda folder: (folder / "adapters.safetensors").unlink(),
    "half": lambda folder: _change(folder, lambda t: {n: a for n, a in t.items() if not n.endswith("lora_b")}),
    "foreign": lambda folder: _change(folder, lambda t: {f"x.{n}": a for n, a in t.items()}),
    "misshapen": lambda folder: _change(folder, lambda t: {n: a[:-1] for n, a in t.items()}),
    "other": lambda folder: _change(folder, lambda t: {n.replace("lora_a", "lora_c"): a for n, a in t.items()}),
    "nothing": lambda folder: _change(folder, lambda _: {"x": mx.zeros((1,))}),
    "no scale": lambda folder: (folder / "adapter_config.json").write_text("{}"),
}


def _change(folder: Path, change: Any) -> None:
    path = str(folder / "adapters.safetensors")
    tensors = dict(mx.load(path))  # type: ignore[arg-type]
    mx.eval(tensors)
    mx.save_safetensors(path, {name: mx.contiguous(array) for name, array in change(tensors).items()})


@pytest.mark.parametrize("name", BREAKS)
def test_what_does_not_fit_is_named_in_a_line(tmp_path: Path, name: str) -> None:
    folder = tiny_folder(tmp_path / "model")
    adapter = save(tmp_path / "adapter", arrays(targets(load_model(folder, fuse=False)[0], "afmoe", experts=False)))
    BREAKS[name](adapter)
    with pytest.raises(AdapterError) as caught:
        load(folder, adapter_path=adapter)
    assert str(adapter) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("model_type", "experts"), [(kind, e) for kind in ARCHITECTURES for e in (False, True)])
def test_a_step_takes_few_operations_more(tmp_path: Path, model_type: str, experts: bool) -> None:
    folder = wide_folder(tmp_path / "model", model_type, bits=4, group_size=32)
    shapes = targets(load_model(folder, fuse=False)[0], model_type, experts=experts)
    adapter = save(tmp_path / "adapter", arrays(shapes))

    def count(paths: list[Path]) -> int:
        model = load_model(folder, adapt=adapting(paths))[0]
        mx.eval(model(IDS[:1], cache=(cache := model.make_cache())), cache.arrays)
        return operations(model(IDS[:1, :1], cache=cache)).total()

    assert count([adapter]) <= 1.35 * count([])


def test_an_evaluation_is_of_the_adapted_model(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    shapes = targets(load_model(folder, fuse=False)[0], "afmoe", experts=True)
    adapter = save(tmp_path / "adapter", arrays(shapes))
    text = tmp_path / "text.txt"
    text.write_text("hello to the world, and to all the rest of it " * 4)
    plain, none, adapted = (
        evaluate(folder, text=text, sequence_length=32, **options).perplexity
        for options in ({}, {"adapter_path": adapter, "adapter_scale": 0.0}, {"adapter_path": adapter})
    )
    assert none == pytest.approx(plain, rel=1e-4)
    assert adapted != pytest.approx(plain, rel=1e-2)
