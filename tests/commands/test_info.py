"""`afmoe-mlx info`: what a model needs and where it fits, from its config and headers; no weights are downloaded."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from afmoe_mlx import device
from afmoe_mlx.checkpoint.hub import resolve, resolve_headers
from afmoe_mlx.errors import CheckpointError
from afmoe_mlx.models.shapes import shape
from helpers.command_line import invoke
from helpers.hollow import header, write_hollow
from helpers.hub_server import REPO, SMALL, FakeHub
from helpers.tiny import ARCHITECTURES, tiny_folder

COPIED = 10e9


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 16 GB, 12 of them free, that copies 10 GB a second."""
    monkeypatch.setattr(device, "copy_bandwidth", lambda *_: COPIED)
    monkeypatch.setattr(device, "device_name", lambda: "some CPU")
    monkeypatch.setattr(device, "memory", lambda: device.Memory(16 << 30, 12_000_000_000))


def run(*arguments: str) -> Any:
    return invoke(["info", *arguments])


def as_json(*arguments: str) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    value: dict[str, Any] = json.loads(result.stdout)
    return value


def assert_refused(result: Any, *words: str) -> None:
    """One line on stderr, nothing on stdout, exit status 1."""
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert [word for word in words if word not in result.stderr] == []


def test_quantized_keys_count_as_they_are_kept(tmp_path: Path) -> None:
    folder = str(write_hollow(tmp_path, shape("trinity-nano"), bits=4))
    plain, eight = as_json(folder), as_json(folder, "--kv-bits", "8")
    assert (plain["kv_bits"], eight["kv_bits"]) == (None, 8)
    # codes of a byte, and in groups of 64 a scale and a bias of two bytes each, instead of two bytes a number
    ratio = (64 + 4) / 128
    kinds = ("full_attention", "sliding_attention")
    assert [eight["cache_bytes"][kind] / plain["cache_bytes"][kind] for kind in kinds] == [ratio, 1]
    assert eight["needed_bytes"] < plain["needed_bytes"]
    assert eight["bytes_per_token"] < plain["bytes_per_token"]
    assert_refused(run(folder, "--kv-bits", "7"), "kv_bits is 7")


def add_to(hub: FakeHub, raw: dict[str, Any]) -> int:
    """Put a model in 4 bits on the Hub, its weights all zeros; the size of its one file of weights."""
    config, head, size = header(raw, 4)
    body = head + bytes(size)
    files = SMALL | {"config.json": json.dumps(config).encode()}
    hub.add(REPO, files | {"model.safetensors": body})
    return len(body)


def test_a_published_model_is_described_in_lines_that_fit_a_terminal(tmp_path: Path) -> None:
    folder = write_hollow(tmp_path / "nano", shape("trinity-nano"), bits=4)
    result = run(str(folder))
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert all(len(line) <= 80 for line in lines[1:])  # the first has the folder's name
    text = result.stdout
    for words in (
        "42 sliding (window 2,048), 14 full",
        "6.12 billion, 0.82 billion active",
        "3.5 GB, 4 bits",
        "32,768",
    ):
        assert words in text
    m1 = next(line for line in lines if line.startswith("M1 ")).split()
    assert m1 == ["M1", "8", "GB", "5.7", "GB", "68", "GB/s", "yes", "66"]
    here = next(line for line in lines if line.startswith("some CPU")).split()
    assert here == ["some", "CPU", "17.2", "GB", "12.0", "GB", "10*", "GB/s", "yes", "6.1"]


def test_a_model_fits_where_what_it_needs_does(tmp_path: Path) -> None:
    value = as_json(str(write_hollow(tmp_path, shape("trinity-mini"), bits=4)))
    assert 15.8e9 < value["needed_bytes"] < 16e9
    assert value["this_machine"]["fits"] is False
    assert {mac["name"]: mac["fits"] for mac in value["macs"]}["M4"] is True  # 24 GB, two thirds of them
    for mac in value["macs"]:
        assert mac["fits"] == (value["needed_bytes"] <= mac["usable_bytes"])
        assert mac["max_tokens_per_second"] == mac["bandwidth_bytes_per_second"] / value["bytes_per_token"]


def test_json_holds_what_is_printed(tmp_path: Path) -> None:
    value = as_json(str(write_hollow(tmp_path, shape("lfm2-8b-a1b"), bits=4)), "--context", "1000")
    assert value["model_type"] == "lfm2_moe"
    assert value["layers"] == {"conv": 18, "full_attention": 6}
    assert value["parameters"] == {"total": 8_339_930_560, "active": 1_557_740_992}
    assert value["quantization"] == {"group_size": 64, "bits": 4, "mode": "affine"}
    assert value["disk_bytes"] == 4_693_588_864
    assert value["weight_bytes"] == value["disk_bytes"] + 22 * 32 * 2  # expert_bias is loaded as float32
    assert value["context"] == 1000
    assert value["cache_bytes"] == {"conv": 18 * 1000 * 2048 * 2, "full_attention": 6 * 1024 * 2 * 8 * 64 * 2}
    parts = value["weight_bytes"] + sum(value["cache_bytes"].values()) + value["workspace_bytes"]
    assert value["needed_bytes"] == parts
    here = value["this_machine"]
    assert (here["dtype"], here["bandwidth_is_measured"]) == ("float32", True)
    assert here["max_tokens_per_second"] == COPIED / here["bytes_per_token"]


def test_on_a_mac_the_bandwidth_is_what_apple_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "is_cpu", lambda: False)
    monkeypatch.setattr(device, "device_name", lambda: "Apple M4 Max")
    monkeypatch.setattr(device, "copy_bandwidth", lambda *_: pytest.fail("measured"))
    folder = write_hollow(tmp_path, shape("trinity-nano"), bits=4)
    here = as_json(str(folder))["this_machine"]
    assert (here["bandwidth_bytes_per_second"], here["bandwidth_is_measured"]) == (546e9, False)
    assert here["dtype"] == "bfloat16"
    text = run(str(folder)).stdout
    assert "measured" not in text
    assert "float32" not in text


def test_unknown_memory_is_a_question_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "memory", lambda: device.Memory(None, None))
    assert as_json("demo")["this_machine"]["fits"] is None
    here = next(line for line in run("demo").stdout.splitlines() if line.startswith("some CPU"))
    assert here.split()[2:4] == ["?", "?"]


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_an_unquantized_folder_is_described(tmp_path: Path, model_type: str) -> None:
    value = as_json(str(tiny_folder(tmp_path, model_type)))
    assert value["quantization"] is None
    assert value["dtype"] == "float32"
    assert value["disk_bytes"] == 4 * value["parameters"]["total"]
    assert "float32" in run(str(tmp_path)).stdout


def test_the_demo_is_described_with_its_own_context() -> None:
    value = as_json("demo")
    assert value["context"] == value["max_context"]


@pytest.mark.parametrize("name", ["trinity-nano", "owner/name", "."])
def test_what_is_not_there_is_one_line(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert_refused(run(name), "config.json: no such file" if name == "." else "HF_HUB_OFFLINE")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([], 2),
        (["demo", "--context", "0"], 2),
        (["demo", "--context", "some"], 2),
        (["demo", "--context", "9999999"], 1),
    ],
)
def test_nonsense_is_refused(arguments: list[str], code: int) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (code, "")


def test_a_context_beyond_the_models_is_refused_by_name() -> None:
    assert_refused(run("demo", "--context", "9999999"), "--context", "9999999", "4096")


def test_a_folder_without_weights_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(shape("trinity-nano")))
    assert_refused(run(str(tmp_path)), "model.safetensors")


def test_the_template_and_the_models_own_sampling_are_shown(tmp_path: Path) -> None:
    template = (
        "{{ bos_token }}{% set x = 1 %}{% for m in messages %}{{ m.content }}{{ loop.index + x }}{% endfor %}"
        "{% if tools and enable_thinking is defined %}{{ strftime_now('%Y') }}{% endif %}{{ add_generation_prompt }}"
    )
    folder = tiny_folder(tmp_path / "a", template=template)
    chosen = {"do_sample": True, "temperature": 0.5, "top_k": 7, "eos_token_id": 1}
    (folder / "generation_config.json").write_text(json.dumps(chosen))
    value = as_json(str(folder))
    assert value["chat_template"] == {"variables": ["enable_thinking", "tools"]}
    assert value["sampling"] == {"temperature": 0.5, "top_k": 7}
    lines = run(str(folder)).stdout.splitlines()
    assert "Template      knows enable_thinking, tools" in lines
    assert "Sampling      temperature 0.5, top_k 7" in lines


def test_without_a_template_and_sampling_of_its_own_it_says_so(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "a", template=None)
    value = as_json(str(folder))
    assert (value["chat_template"], value["sampling"]) == (None, {})
    text = run(str(folder)).stdout
    assert "Template      none" in text
    assert "Sampling      always the likeliest token" in text


# --- The Hub

SMALL_SHAPE = shape("trinity-nano", layers=2) | {"vocab_size": 1024, "num_experts": 16}


def test_of_a_model_on_the_hub_no_weights_are_downloaded(hub: FakeHub, tmp_path: Path) -> None:
    whole = add_to(hub, SMALL_SHAPE)
    value = as_json(REPO)
    assert 0 < value["weight_bytes"] < whole
    assert hub.served["model.safetensors"] <= 100_001 < whole / 50
    assert not list((tmp_path / "home").rglob("*.safetensors"))
    local = write_hollow(tmp_path / "local", SMALL_SHAPE, bits=4)
    assert as_json(str(local)) == value | {"model": str(local), "chat_template": None}


def test_of_a_sharded_model_only_the_heads_of_the_shards_are_fetched(hub: FakeHub) -> None:
    config, head, size = header(SMALL_SHAPE, 4)
    tensors = json.loads(head[8:])
    files = SMALL | {"config.json": json.dumps(config).encode()}
    names = [f"model-{i + 1:05}-of-00002.safetensors" for i in range(2)]
    weight_map = {}
    for i, name in enumerate(names):
        mine = [key for j, key in enumerate(tensors) if j % 2 == i]
        weight_map |= dict.fromkeys(mine, name)
        text = json.dumps({key: tensors[key] for key in mine}).encode()
        files[name] = len(text).to_bytes(8, "little") + text + bytes(size // 2)
    files["model.safetensors.index.json"] = json.dumps({"weight_map": weight_map}).encode()
    hub.add(REPO, files | {"model-of-someone.safetensors": b"not read"})
    _, headers = resolve_headers(REPO)
    assert headers.keys() == tensors.keys()
    assert {name: list(tensor.shape) for name, tensor in headers.items()} == {
        name: tensor["shape"] for name, tensor in tensors.items()
    }
    assert {name: hub.served.get(name, 0) for name in names} == dict.fromkeys(names, 100_001)
    assert "model-of-someone.safetensors" not in hub.served


def test_a_header_longer_than_the_first_request_is_fetched_whole(hub: FakeHub) -> None:
    raw = shape("trinity-nano") | {"hidden_size": 64, "vocab_size": 64, "num_experts": 8, "moe_intermediate_size": 64}
    raw |= {"intermediate_size": 64, "num_attention_heads": 2, "head_dim": 32}
    head = header(raw, 4)[1]
    assert len(head) > 100_001
    add_to(hub, raw)
    _, headers = resolve_headers(REPO)
    assert len(headers) == len(json.loads(head[8:]))
    assert hub.served["model.safetensors"] < 2 * len(head)


def test_a_model_in_the_cache_is_described_without_the_network(hub: FakeHub) -> None:
    add_to(hub, SMALL_SHAPE)
    value = as_json(REPO)
    resolve(REPO)
    hub.served.clear()
    assert as_json(REPO) == value
    assert hub.served == {}
    hub.stop()
    assert as_json(REPO) == value


def test_a_repository_that_is_not_there_is_one_line(hub: FakeHub) -> None:
    assert_refused(run("someone/nothing"), "no model someone/nothing")


def test_offline_with_the_config_alone_in_the_cache_says_so(hub: FakeHub) -> None:
    add_to(hub, SMALL_SHAPE)
    as_json(REPO)
    hub.stop()
    assert_refused(run(REPO), REPO, "weights", "connection failed")


def test_a_gated_repository_says_how_to_get_in(hub: FakeHub) -> None:
    add_to(hub, SMALL_SHAPE)
    hub.gated.add(REPO)
    assert_refused(run(REPO), "gated")


def test_a_repository_without_safetensors_is_one_line(hub: FakeHub) -> None:
    hub.add(REPO, SMALL | {"pytorch_model.bin": b"x"})
    assert_refused(run(REPO), "only .bin weights")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"short",
        b"w" * 1000,
        (10).to_bytes(8, "little") + b"not json!!",
        (2).to_bytes(8, "little") + b"[]",
        *(
            len(text).to_bytes(8, "little") + text
            for text in (
                b'{"a": 3}',
                b'{"a": {"dtype": "BF16"}}',
                b'{"a": {"dtype": "BF16", "shape": [-1], "data_offsets": [0, 2]}}',
                b'{"a": {"dtype": "BF16", "shape": ["x"], "data_offsets": [0, 2]}}',
            )
        ),
    ],
)
def test_a_file_with_a_bad_header_is_one_line(hub: FakeHub, body: bytes) -> None:
    hub.add(REPO, SMALL | {"model.safetensors": body})
    with pytest.raises(CheckpointError, match=r"model\.safetensors") as error:
        resolve_headers(REPO)
    assert "\n" not in str(error.value)


def test_no_slow_framework_is_imported() -> None:
    code = (
        "import sys; from afmoe_mlx.cli import app\n"
        "try: app(['info', 'demo'])\n"
        "except SystemExit as e: code = e.code\n"
        "names = ('mlx_lm', 'transformers', 'torch', 'rich.table', 'huggingface_hub')\n"
        "print(code, [m for m in names if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "0 []", done.stderr


def test_a_number_format_that_is_not_read_is_one_line(hub: FakeHub) -> None:
    text = b'{"a": {"dtype": "C64", "shape": [1], "data_offsets": [0, 8]}}'
    hub.add(REPO, SMALL | {"model.safetensors": len(text).to_bytes(8, "little") + text})
    assert_refused(run(REPO), "model.safetensors: a is C64")


def test_on_several_hosts_each_has_its_layers_and_its_own_room_for_experts(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts.json"
    hosts.write_text(json.dumps([{"ssh": "127.0.0.1", "ips": ["127.0.0.1"]}] * 2))
    # less than two experts in every layer of the model
    arguments = ("demo", "--hosts", str(hosts), "--experts-in-memory", "300KB")
    value = as_json(*arguments)["hosts"]
    layers = [layer for share in value["shares"] for layer in range(*share["layers"])]
    assert layers == list(range(8))
    assert all(0 < share["experts_in_memory_bytes"] <= 300_000 for share in value["shares"])
    assert value["shares"][0]["usable_bytes"] == 6_000_000_000  # the half: the other process is on this machine too
    assert value["max_tokens_per_second"] > 0
