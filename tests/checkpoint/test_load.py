"""Every layout on disk gives the reference's logits, and loading holds little more than the model itself."""

import gc
import os
import resource
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from afmoe_mlx import convert, device, load_model
from afmoe_mlx.checkpoint import files, open_model
from afmoe_mlx.checkpoint.save import save_weights, write_json
from afmoe_mlx.models import CausalLM
from helpers.checkpoints import Tensors, golden, older_spelling, packed, recast, stacked, write, write_golden
from helpers.tiny import ARCHITECTURES, tiny, tiny_folder, tokens

TOLERANCE = 2e-5
NAMES = [
    "afmoe-base",
    "afmoe-attention_bias",
    "afmoe-three_shared",
    "afmoe-no_shared",
    "afmoe-tied",
    "afmoe-all_dense",
    "afmoe-yarn",
    "lfm2_moe-base",
    "lfm2_moe-conv_bias",
    "lfm2_moe-no_expert_bias",
    "lfm2_moe-untied",
]
LAYOUTS: dict[str, Callable[[Tensors], Tensors] | None] = {"per_expert": None, "packed": packed, "stacked": stacked}


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_a_model_loaded_in_one_thread_answers_first_in_another(tmp_path: Path, model_type: str) -> None:
    folder, prompt = tiny_folder(tmp_path / "model", model_type), tokens(1, 12)
    expected = np.array(load_model(folder)[0](prompt))
    model = load_model(folder)[0]

    def answer() -> list[np.ndarray]:
        cache = model.make_cache()
        steps = [model(prompt[:, :11], cache=cache)[:, -1:], model(prompt[:, 11:], cache=cache)]
        return [np.array(model(prompt)), *map(np.array, steps)]

    with ThreadPoolExecutor(1) as pool:
        whole, *steps = pool.submit(answer).result()
    assert np.abs(whole - expected).max() < TOLERANCE
    assert np.abs(np.concatenate(steps, axis=1) - expected[:, -2:]).max() < TOLERANCE


def assert_reference_logits(model: CausalLM, name: str) -> None:
    arrays = golden(name).arrays
    assert np.abs(np.array(model(mx.array(arrays["ids"]))) - arrays["logits"]).max() < TOLERANCE


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shards", [1, 3])
def test_every_layout_gives_the_reference_logits(tmp_path: Path, name: str, layout: str, shards: int) -> None:
    made = golden(name)
    write(tmp_path, made.config, made.tensors, layout=LAYOUTS[layout], shards=shards)
    assert_reference_logits(load_model(tmp_path)[0], name)


@pytest.mark.parametrize(
    "name",
    [
        *(f"afmoe-{change}" for change in ("base", "theta", "linear", "llama3", "yarn", "yarn_mscale")),
        *(f"lfm2_moe-{change}" for change in ("base", "linear", "llama3", "yarn")),
    ],
)
def test_the_older_config_spelling_gives_the_reference_logits(tmp_path: Path, name: str) -> None:
    made = golden(name)
    write(tmp_path, older_spelling(made.config), made.tensors)
    assert_reference_logits(load_model(tmp_path)[0], name)


def test_shards_without_an_index_are_all_read(tmp_path: Path) -> None:
    made = golden("afmoe-base")
    write(tmp_path, made.config, made.tensors, shards=3)
    (tmp_path / "model.safetensors.index.json").unlink()
    assert_reference_logits(load_model(tmp_path)[0], "afmoe-base")


def test_files_that_the_index_does_not_name_are_not_read(tmp_path: Path) -> None:
    made = golden("afmoe-base")
    write(tmp_path, made.config, made.tensors, shards=2)
    (tmp_path / "model-of-someone.safetensors").write_bytes(b"not read")
    assert_reference_logits(load_model(tmp_path)[0], "afmoe-base")


def test_known_extras_are_tolerated(tmp_path: Path) -> None:
    made, zeros = golden("afmoe-tied"), np.zeros
    extras = {
        "model.rotary_emb.inv_freq": zeros(4, np.float32),
        "model.layers.0.self_attn.rotary_emb.inv_freq": zeros(4, np.float32),
        "lm_head.weight": made.tensors["model.embed_tokens.weight"],
    }
    write(tmp_path, made.config, made.tensors | extras)
    assert_reference_logits(load_model(tmp_path)[0], "afmoe-tied")


def test_empty_shared_experts_are_tolerated(tmp_path: Path) -> None:
    made = golden("afmoe-no_shared")
    assert any(0 in shape for shape in made.shapes.values())
    full = {name: tensor for name, tensor in made.tensors.items() if tensor.size}
    for tensors in (made.tensors, full):
        assert_reference_logits(load_model(write(tmp_path, made.config, tensors))[0], "afmoe-no_shared")


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@pytest.mark.parametrize("stored", [mx.bfloat16, mx.float16], ids=["bfloat16", "float16"])
def test_half_precision_files_compute_in_float32_on_the_cpu(tmp_path: Path, model_type: str, stored: mx.Dtype) -> None:
    name = f"{model_type}-base"
    halves = recast(write_golden(tmp_path / "half", name), stored)
    singles = recast(recast(write_golden(tmp_path / "single", name), stored), mx.float32)
    model, expected = load_model(halves)[0], load_model(singles)[0]
    assert {array.dtype for _, array in tree_flatten(model.parameters())} == {mx.float32}
    assert mx.array_equal(model(tokens(1, 9)), expected(tokens(1, 9)))
    assert_near_reference(model, name, 0.1)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("dtype", [mx.bfloat16, "bfloat16", "float16"])
def test_a_given_dtype_is_computed_in(tmp_path: Path, model_type: str, fuse: bool, dtype: Any) -> None:
    name = f"{model_type}-base"
    model, _ = load_model(write_golden(tmp_path, name), dtype=dtype, fuse=fuse)
    expected = mx.float16 if dtype == "float16" else mx.bfloat16
    cache = model.make_cache()
    for length in (9, 1, 80):
        assert model(tokens(1, length), cache=cache).dtype == expected
    assert {array.dtype for array in cache.arrays} == {expected}
    assert_near_reference(model, name, 0.3)


def assert_near_reference(model: CausalLM, name: str, tolerance: float) -> None:
    arrays = golden(name).arrays
    ours = np.array(model(mx.array(arrays["ids"])).astype(mx.float32))
    assert np.sqrt(((ours - arrays["logits"]) ** 2).mean()) < tolerance


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@pytest.mark.parametrize("bits", [None, 4])
def test_norms_stored_in_float32_do_not_widen_the_rest(tmp_path: Path, model_type: str, bits: int | None) -> None:
    folder = recast(write_golden(tmp_path / "a", f"{model_type}-base"), mx.bfloat16, keep="norm.weight")
    if bits:
        folder = convert(folder, tmp_path / "b", bits=bits, group_size=32)
    model, _ = load_model(folder, dtype="bfloat16")
    norms = [array for name, array in tree_flatten(model.parameters()) if name.endswith("norm.weight")]
    assert {array.dtype for array in norms} == {mx.float32}
    cache = model.make_cache()
    assert model(tokens(2, 9), cache=cache).dtype == mx.bfloat16
    assert {array.dtype for array in cache.arrays} == {mx.bfloat16}


def test_every_path_to_the_folder_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_golden(tmp_path / "model", "afmoe-base")
    monkeypatch.chdir(tmp_path)
    for source in (tmp_path / "model", str(tmp_path / "model"), "./model", "model"):
        assert_reference_logits(load_model(source)[0], "afmoe-base")


SHAPE = {
    "vocab_size": 256,
    "hidden_size": 128,
    "intermediate_size": 512,
    "moe_intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts": 16,
}
EIGHT_LAYERS: dict[str, dict[str, Any]] = {
    "afmoe": {"num_hidden_layers": 8, "head_dim": 32},
    "lfm2_moe": {"num_hidden_layers": 8, "layer_types": ["conv", "full_attention"] * 4},
}


def write_eight_layers(folder: Path, model_type: str, dtype: mx.Dtype, layout: str) -> Path:
    """A model of 8 layers of 2 to 4 MB, random weights, `dtype` throughout."""
    model = tiny(model_type, **SHAPE | EIGHT_LAYERS[model_type])
    ours = {name: array.astype(dtype) for name, array in tree_flatten(model.parameters())}
    weights: dict[str, mx.array] = {}
    for name, array in ours.items():
        path, projection, kind = f".{name}".rsplit(".", 2)
        path = path.removeprefix(".").replace("switch_mlp", "experts")
        if array.ndim < 3 or "conv" in name or layout in ("stacked", "quantized"):
            weights[name] = array
        elif layout == "per_expert":
            weights |= {f"{path}.{i}.{projection}.{kind}": expert for i, expert in enumerate(array)}
        elif projection == "down_proj":
            weights[f"{path}.down_proj"] = array
        elif projection == "gate_proj":
            weights[f"{path}.gate_up_proj"] = mx.concatenate([array, ours[name.replace("gate", "up")]], axis=1)
    folder.mkdir(parents=True)
    write_json(folder / "config.json", {"model_type": model_type} | model_config(model))
    save_weights(folder, weights)
    return folder


def model_config(model: CausalLM) -> dict[str, Any]:
    values = {name: value for name, value in vars(model.config).items() if name != "rope"}
    return values | {"layer_types": list(model.config.layer_types)}


def nbytes(module: Any) -> int:
    return sum(array.nbytes for _, array in tree_flatten(module.parameters()))


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@pytest.mark.parametrize(
    ("layout", "stored"),
    [*((layout, mx.float32) for layout in ("per_expert", "packed", "stacked", "quantized")), ("stacked", mx.bfloat16)],
    ids=str,
)
def test_loading_holds_at_most_the_model_and_one_layer(
    tmp_path: Path, model_type: str, stored: mx.Dtype, layout: str
) -> None:
    folder = write_eight_layers(tmp_path / "a", model_type, stored, layout)
    if layout == "quantized":
        folder = convert(folder, tmp_path / "b")
    for fuse, dtype in ((True, None), (True, mx.bfloat16), (False, mx.bfloat16)):  # unfused, as stored: less than any
        gc.collect()
        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        model, _ = load_model(folder, fuse=fuse, dtype=dtype)
        peak = mx.get_peak_memory() - before
        narrowing = max(stored.size / dtype.size, 1) if dtype else 1  # a layer as it is stored
        most = nbytes(model) + narrowing * max(nbytes(layer) for layer in model.model.layers)
        assert peak <= most, (fuse, dtype)
        del model


def test_streams_share_a_checkpoints_bytes_and_read_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_eight_layers(tmp_path / "a", "afmoe", mx.bfloat16, "stacked")
    paths, streams = [folder / "model.safetensors"], device.reading_streams()[:2]
    loads: list[Any] = []

    def noted(path: str, stream: Any) -> Any:
        loads.append((stream, mx.load(path, stream=stream)))
        return loads[-1][1]

    monkeypatch.setattr(files, "mx", SimpleNamespace(load=noted))
    tensors = files.load_lazily(paths, streams)
    monkeypatch.setattr(files, "_allow_open_files", lambda count: files.SPARE_FILES + 1)
    assert files.load_lazily(paths, streams).keys() == tensors.keys()
    assert loads.pop()[0] is streams[0], "there is no room for a second"
    monkeypatch.undo()
    read = [sum(a.nbytes for name, a in loaded.items() if a is tensors[name]) for _, loaded in loads]
    largest = max(array.nbytes for array in tensors.values())
    assert [stream for stream, _ in loads] == [*streams]
    assert abs(read[0] - read[-1]) <= largest
    plain = files.load_lazily(paths)
    assert plain.keys() == tensors.keys()
    assert all(mx.array_equal(tensors[name], array) for name, array in plain.items())


def test_opening_reads_no_weights(tmp_path: Path) -> None:
    folder = write_eight_layers(tmp_path / "a", "afmoe", mx.float32, "per_expert")
    gc.collect()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    model = open_model(folder)
    assert mx.get_peak_memory() - before < 100_000 < nbytes(model)


def test_a_head_that_differs_from_the_embeddings_it_is_tied_to_is_used_as_transformers_does(tmp_path: Path) -> None:
    made = golden("afmoe-base")
    folder = write(tmp_path / "m", made.config | {"tie_word_embeddings": True}, made.tensors)
    with pytest.warns(UserWarning, match="lm_head"):
        model, config = load_model(folder)
    assert not config.tie_word_embeddings
    logits = model(mx.array(made.arrays["ids"]))
    assert np.abs(np.array(logits) - made.arrays["logits"]).max() < 2e-5


def test_a_checkpoint_may_have_more_files_than_a_process_is_granted_at_first(tmp_path: Path) -> None:
    made = golden("afmoe-base")
    folder = write(tmp_path / "m", made.config, made.tensors, shards=len(made.tensors))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    granted = len(made.tensors) + 2  # too few, with what is open already
    resource.setrlimit(resource.RLIMIT_NOFILE, (granted, limits[1]))
    try:
        assert_reference_logits(load_model(folder)[0], "afmoe-base")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("dtype", [None, "float32"])
@pytest.mark.parametrize("streams", [1, 2])
def test_ctrl_c_is_heard_after_each_layer_that_is_read(
    tmp_path: Path, dtype: str | None, streams: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, evaluate = tiny_folder(tmp_path / "model"), mx.eval
    monkeypatch.setattr(device, "reading_streams", lambda: [mx.new_stream(mx.cpu) for _ in range(streams)])
    sizes: list[int] = []

    def counted(*arrays: Any) -> None:
        sizes.append(sum(array.nbytes for _, array in tree_flatten(arrays)))
        evaluate(*arrays)

    with monkeypatch.context() as patch:
        patch.setattr(mx, "eval", counted)
        model = load_model(folder, dtype=dtype)[0]
    # the last goes through all that is there already
    assert max(sizes[:-1]) <= max(map(nbytes, [model.model.embed_tokens, *model.model.layers]))

    def interrupted(*arrays: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        sizes.append(0)
        evaluate(*arrays)

    sizes.clear()
    monkeypatch.setattr(mx, "eval", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_model(folder, dtype=dtype)
    assert len(sizes) <= 1
