"""What a model needs, from its config and headers alone, is what it takes once loaded; what does not fit is refused."""

import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from afmoe_mlx import convert, device, load, load_model
from afmoe_mlx.cache import KVQuantization
from afmoe_mlx.checkpoint.files import find_weights, read_config_json, read_headers
from afmoe_mlx.checkpoint.hub import resolve
from afmoe_mlx.checkpoint.names import MODEL_NAMES
from afmoe_mlx.errors import FitError, InputError
from afmoe_mlx.footprint import MACS, Footprint, count_parameters, fit_check, stated_bandwidth
from afmoe_mlx.footprint.fit import SHORTEST, longest_context
from afmoe_mlx.footprint.macs import BANDWIDTHS
from afmoe_mlx.models import CausalLM, ModelConfig, read_config
from afmoe_mlx.models.shapes import shape
from helpers.checkpoints import golden, packed, recast, stacked, write
from helpers.command_line import invoke
from helpers.hollow import write_hollow
from helpers.hub_server import REPO
from helpers.tiny import ARCHITECTURES, tiny, tiny_folder, tokens

LAYOUTS = {"per expert": None, "packed": packed, "stacked": stacked}


def footprint_of(folder: Path, context: int = 1, dtype: mx.Dtype | None = None) -> Footprint:
    config = read_config(read_config_json(folder))
    return Footprint.of_checkpoint(config, read_headers(find_weights(folder)), context=context, dtype=dtype)


def published(name: str) -> ModelConfig:
    return read_config(shape(name))


def sizes(model: CausalLM) -> dict[str, int]:
    return {name: array.nbytes for name, array in tree_flatten(model.parameters())}


def read_for_a_token(model: CausalLM) -> int:
    """Bytes of a loaded, unfused model's weights that one token reads, counted module by module."""
    config = model.config
    total = sum(sizes(model).values())
    for _, module in model.named_modules():
        if "gate_proj" in module and module.gate_proj.weight.ndim == 3:  # the routed experts
            stack = sum(array.nbytes for _, array in tree_flatten(module.parameters()))
            total -= stack // config.num_experts * (config.num_experts - config.num_experts_per_tok)
    if "lm_head" in model:
        table = sum(array.nbytes for _, array in tree_flatten(model.model.embed_tokens.parameters()))
        total -= table // config.vocab_size * (config.vocab_size - 1)
    return total


@pytest.mark.parametrize("name", ["afmoe-base", "afmoe-three_shared", "afmoe-tied", "lfm2_moe-base", "lfm2_moe-untied"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_in_every_layout_the_weights_are_those_of_the_loaded_model(tmp_path: Path, name: str, layout: str) -> None:
    made = golden(name)
    write(tmp_path, made.config, made.tensors, layout=LAYOUTS[layout])
    model = load_model(tmp_path, fuse=False)[0]
    weights = footprint_of(tmp_path).weights
    assert weights.stored == sum(tensor.nbytes for tensor in made.tensors.values())
    assert weights.held == sum(sizes(model).values())
    assert weights.read == read_for_a_token(model)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@pytest.mark.parametrize(
    "form",
    [{"bits": 4, "group_size": 32}, {"bits": 3, "group_size": 32}, {"mode": "mxfp4"}, {"mode": "nvfp4"}],
    ids=["4 bits", "3 bits", "mxfp4", "nvfp4"],
)
@pytest.mark.parametrize("dtype", [None, mx.bfloat16])
def test_quantized_the_weights_are_those_of_the_loaded_model(
    tmp_path: Path, model_type: str, form: dict[str, Any], dtype: mx.Dtype | None
) -> None:
    convert(recast(tiny_folder(tmp_path / "plain", model_type), mx.bfloat16), tmp_path / "quantized", **form)
    model = load_model(tmp_path / "quantized", fuse=False, dtype=dtype)[0]
    weights = footprint_of(tmp_path / "quantized", dtype=dtype).weights
    assert weights.held == sum(sizes(model).values())
    assert weights.read == read_for_a_token(model)


def test_fused_a_model_holds_hardly_more(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path)
    fused = sum(sizes(load_model(folder)[0]).values())
    assert footprint_of(folder).weights.held == pytest.approx(fused, rel=0.01)


def test_on_a_gpu_weights_are_held_as_they_are_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = recast(tiny_folder(tmp_path), mx.bfloat16, keep="nothing")
    on_cpu = footprint_of(folder).weights
    monkeypatch.setattr(device, "is_cpu", lambda: False)
    on_gpu = footprint_of(folder)
    assert on_gpu.dtype == mx.bfloat16
    assert on_cpu.held == pytest.approx(2 * on_cpu.stored, rel=0.01)
    assert on_gpu.weights.held == pytest.approx(on_gpu.weights.stored, rel=0.01)  # expert_bias is always float32


@pytest.mark.parametrize("row", [row for row in MODEL_NAMES if row.parameters], ids=lambda row: row.name)
def test_the_published_models_have_the_parameters_and_the_size_in_the_table(row: Any) -> None:
    config = published(row.name)
    assert count_parameters(config).total == row.parameters
    four_bits = Footprint.of_conversion(config, bits=4, context=1).weights.stored
    if row.repo.endswith("4bit"):
        assert four_bits == row.download_bytes
    else:
        assert f"4 bits: {four_bits / 1e9:.0f} GB" in row.note


def test_active_parameters_leave_out_idle_experts_and_the_rest_of_the_embedding_table() -> None:
    model = tiny("afmoe")
    assert count_parameters(model.config).active * 4 == read_for_a_token(model)
    tied = tiny("lfm2_moe")
    assert count_parameters(tied.config).active * 4 == read_for_a_token(tied)


def test_nothing_of_a_model_of_400_billion_parameters_is_made() -> None:
    config = published("trinity-large")
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    count_parameters(config)
    Footprint.of_conversion(config, bits=4, context=1000)
    assert mx.get_peak_memory() - before < 1_000_000


def test_the_bytes_of_a_token_are_its_weights_and_the_cache_it_attends_to() -> None:
    short, long = (Footprint.of_conversion(published("lfm2-8b-a1b"), bits=4, context=n) for n in (1024, 2048))
    assert long.bytes_per_token - short.bytes_per_token == 6 * 1024 * 2 * 8 * 64 * 2
    assert short.tokens_per_second(2.0 * short.bytes_per_token) == 2


# --- Fit


def with_memory(monkeypatch: pytest.MonkeyPatch, usable: int | None) -> None:
    monkeypatch.setattr(device, "memory", lambda: device.Memory(usable, usable))


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(FitError) as error:
        load_model(folder, check=fit_check("the-model", **options))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("surplus", [0, -1])
def test_a_model_is_refused_exactly_when_it_needs_more_than_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, surplus: int
) -> None:
    folder = tiny_folder(tmp_path)
    config = read_config(read_config_json(folder))
    with_memory(monkeypatch, footprint_of(folder, context=config.max_position_embeddings).needed + surplus)
    if surplus < 0:
        assert "the-model needs" in refusal(folder)
    else:
        load_model(folder, check=fit_check("the-model"))


def test_a_refusal_reads_no_weights_and_gives_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_hollow(tmp_path, shape("trinity-mini"))
    monkeypatch.setattr(device, "is_cpu", lambda: False)
    with_memory(monkeypatch, 17_200_000_000)
    mx.reset_peak_memory()
    message = refusal(folder)
    assert mx.get_peak_memory() < 50_000_000
    for words in ("53.0 GB", "weights 52.2 GB in bfloat16", "for 4,096 tokens", "17.2 GB", "in 4 bits", "15.4 GB"):
        assert words in message
    assert "--force" in message
    assert "force=True" in message


def test_advice_stands_in_place_of_what_would_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_memory(monkeypatch, 1)
    message = refusal(tiny_folder(tmp_path), advice="take a smaller one")
    assert message.endswith("for it: take a smaller one")


def test_what_would_fit_in_fewer_bits_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_hollow(tmp_path, shape("trinity-nano"), bits=4)
    monkeypatch.setattr(device, "is_cpu", lambda: False)
    with_memory(monkeypatch, 3_600_000_000)
    assert "in 3 bits it would need 3.4 GB" in refusal(folder)
    with_memory(monkeypatch, 2_000_000_000)
    assert "even in 3 bits it would need 3.4 GB" in refusal(folder)


def test_the_longest_context_that_would_fit_is_named_and_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_hollow(tmp_path, shape("trinity-nano"), bits=4)
    monkeypatch.setattr(device, "is_cpu", lambda: False)
    with_memory(monkeypatch, 5_000_000_000)
    message = refusal(folder, context=100_000)
    match = re.search(r"--context (\d+)", message)
    assert match is not None
    config, named = read_config(read_config_json(folder)), int(match[1])
    headers = read_headers(find_weights(folder))
    fit_check("m", context=named)(config, headers)
    with pytest.raises(FitError):
        fit_check("m", context=named + SHORTEST)(config, headers)


def test_no_context_is_named_where_the_weights_alone_do_not_fit() -> None:
    config = published("trinity-nano")
    footprint = Footprint.of_conversion(config, bits=4, context=4096)
    assert longest_context(config, footprint, footprint.weights.held) is None
    assert longest_context(config, footprint, 1 << 50) == config.max_position_embeddings


def test_a_context_that_fits_only_with_quantized_keys_is_loaded_with_them_and_they_are_proposed_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"head_dim": 32, "hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2}
    folder = tiny_folder(tmp_path, **sizes, max_position_embeddings=1 << 20)
    config = read_config(read_config_json(folder))
    plain = footprint_of(folder, context=1 << 20)
    eight = plain.with_kv(config, KVQuantization(8))
    assert eight.needed < plain.needed * 0.6
    with_memory(monkeypatch, eight.needed)
    with pytest.raises(FitError, match=re.escape("--kv-bits 8, kv_quantization=KVQuantization(8)")):
        load(folder, context=1 << 20)
    model, _ = load(folder, context=1 << 20, kv_quantization=KVQuantization(8))
    assert model.kv_quantization == KVQuantization(8, 32)
    arguments = ["generate", "--model", str(folder), "--context", str(1 << 20), "-p", "hello", "-m", "2"]
    assert invoke(arguments).exit_code == 1
    assert invoke([*arguments, "--kv-bits", "8"]).exit_code == 0
    arguments[:3] = ["chat", "--model", str(folder)]
    arguments[5:7] = []
    assert invoke(arguments, input="hello").exit_code == 1
    assert invoke([*arguments, "--kv-bits", "8"], input="hello").exit_code == 0
    with_memory(monkeypatch, eight.needed - 1)
    with pytest.raises(FitError, match="--kv-bits 4"):
        load(folder, context=1 << 20)
    with pytest.raises(FitError) as refused:
        load(folder, context=1 << 20, kv_quantization=KVQuantization(8))
    assert "kv-bits" not in str(refused.value)
    with_memory(monkeypatch, eight.needed)
    named = re.search(r"--context (\d+)", str(refused.value))
    assert named is not None
    load(folder, context=int(named[1]), kv_quantization=KVQuantization(8))


def test_keys_that_cannot_be_quantized_are_refused(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path)
    with pytest.raises(InputError, match="heads have 8 dimensions"):
        load(folder, kv_quantization=KVQuantization(8))
    with pytest.raises(InputError, match="expected a KVQuantization"):
        load(folder, kv_quantization=8)  # type: ignore[arg-type]


def test_where_memory_is_unknown_nothing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_memory(monkeypatch, None)
    load_model(tiny_folder(tmp_path), check=fit_check("m"))


def test_load_refuses_and_force_loads_anyway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_folder(tmp_path)
    with_memory(monkeypatch, 1000)
    with pytest.raises(FitError, match=re.escape(str(folder))):
        load(folder)
    assert load(folder, force=True)[0](tokens(1, 3)).shape[:2] == (1, 3)


def test_a_context_counts_up_to_the_models_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_folder(tmp_path, max_position_embeddings=8192)
    with_memory(monkeypatch, footprint_of(folder, context=4096).needed)
    load(folder)
    with pytest.raises(FitError, match="8,192 tokens"):
        load(folder, context=10**9)
    with pytest.raises(InputError, match="context is 0"):
        load(folder, context=0)


@pytest.fixture
def served(hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a model that the Hub has, and that does not fit here."""
    folder = tiny_folder(tmp_path / "tiny", moe_intermediate_size=512)
    hub.add(REPO, {path.name: path.read_bytes() for path in folder.iterdir()})
    with_memory(monkeypatch, 100_000)
    return folder


def test_a_model_that_is_too_large_is_refused_before_it_is_downloaded(
    hub: Any,
    served: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(FitError, match=REPO):
        load(REPO)
    whole = (served / "model.safetensors").stat().st_size
    assert hub.served["model.safetensors"] < whole / 5
    assert not list((tmp_path / "home").rglob("*.safetensors"))
    with_memory(monkeypatch, None)
    load(REPO)
    assert (resolve(REPO) / "model.safetensors").stat().st_size == whole


@pytest.mark.usefixtures("served")
def test_a_bench_asks_for_memory_and_context_before_it_downloads(tmp_path: Path) -> None:
    short = ["--prompt-tokens", "64", "--generation-tokens", "8"]
    for options, words in (short, "a smaller --batch-size"), ([], "the model's context"):
        result = invoke(["bench", "--model", REPO, *options])
        assert result.exit_code == 1
        assert words in result.stderr
    assert not list((tmp_path / "home").rglob("*.safetensors"))


@pytest.mark.parametrize("command", [["generate", "--prompt", "hello"], ["chat"]])
def test_the_commands_refuse_in_one_line_and_obey_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    arguments = [*command, "--model", str(tiny_folder(tmp_path)), "--max-tokens", "2"]
    with_memory(monkeypatch, 1000)
    result = invoke(arguments, input="hello")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.count("\n") == 1
    assert "--force" in result.stderr
    assert invoke([*arguments, "--force"], input="hello").exit_code == 0


@pytest.mark.parametrize("command", [["generate", "--prompt", "hello"], ["chat"]])
def test_the_commands_make_room_for_the_context_they_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    folder = tiny_folder(tmp_path, max_position_embeddings=65536)
    arguments = [*command, "--model", str(folder), "--max-tokens", "2"]
    with_memory(monkeypatch, footprint_of(folder, context=4096).needed)
    assert invoke(arguments, input="hello").exit_code == 0
    assert "8,192 tokens" in invoke([*arguments, "--context", "8192"], input="hello").stderr
    assert invoke([*arguments, "--context", "0"], input="hello").exit_code == 2


# --- Macs


def test_the_table_of_macs_is_in_order_and_knows_every_chip() -> None:
    assert len(MACS) >= 12
    assert {mac.chip for mac in MACS} <= BANDWIDTHS.keys()
    assert [mac.memory for mac in MACS] == sorted(mac.memory for mac in MACS)
    assert all(mac.memory / 2 < mac.usable < mac.memory for mac in MACS)


def test_a_device_is_found_by_its_name() -> None:
    assert stated_bandwidth("Apple M2 Pro") == 200e9
    assert stated_bandwidth("Apple M1") == 68.25e9
    assert stated_bandwidth("NVIDIA H100") is None
