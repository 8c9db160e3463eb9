"""What another quantizer made and is not read is told by the config alone, with what to take instead."""

import json
from pathlib import Path
from typing import Any

import pytest

from afmoe_mlx import convert, load, load_model
from afmoe_mlx.checkpoint.hub import resolve
from afmoe_mlx.checkpoint.methods import READ, check_method
from afmoe_mlx.errors import AfmoeError, CheckpointError, ConfigError, HubError
from helpers.command_line import run
from helpers.grid import AFMOE
from helpers.hub_server import FakeHub
from helpers.tiny import tiny_folder

REPO = "someone/Trinity-Mini-quantized"
INSTEAD = "take trinity-mini (mlx-community/Trinity-Mini-4bit), or convert arcee-ai/Trinity-Mini"
METHODS = ("awq", "gptq", "bitsandbytes", "torchao", "exl2", "exl3", "hqq", "quark", ["awq"], 3)


def config(method: Any) -> bytes:
    return json.dumps(AFMOE | {"model_type": "afmoe", "quantization_config": {"quant_method": method}}).encode()


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_nothing_but_the_config_of_a_repository_is_fetched(hub: FakeHub, method: Any) -> None:
    files = {"tokenizer.json": b"{}", "model.safetensors": b"never fetched"}
    hub.add(REPO, {"config.json": config(method)} | files)
    for weights in (True, False):
        with pytest.raises(ConfigError) as error:
            resolve(REPO, weights=weights)
        assert hub.fetched() == {"config.json"}
        assert f"quant_method is {method!r}" in str(error.value)
        assert str(error.value).endswith(INSTEAD)


@pytest.mark.parametrize("method", METHODS[:2])
def test_a_folder_is_judged_before_its_weights_and_tokenizer(tmp_path: Path, method: Any) -> None:
    folder = tmp_path / "Trinity-Mini-AWQ"
    folder.mkdir()
    (folder / "config.json").write_bytes(config(method))
    (folder / "model.safetensors").write_bytes(b"not even a header")
    for act in (load, load_model, lambda source: convert(source, tmp_path / "out")):
        with pytest.raises(ConfigError, match=f"quant_method is '{method}'"):
            act(folder)
    for command in (["info", str(folder)], ["eval", str(folder)], ["generate", "--model", str(folder), "-p", "x"]):
        result = run(*command)
        assert (result.code, INSTEAD in " ".join(result.err.split())) == (1, True)


def test_bitsandbytes_once_wrote_no_method() -> None:
    with pytest.raises(ConfigError, match="bitsandbytes"):
        check_method({"quantization_config": {"load_in_4bit": True}}, "x")


@pytest.mark.parametrize("method", READ)
def test_what_is_read_passes(method: str) -> None:
    check_method({"quantization_config": {"quant_method": method, "transform_config": {}}}, "x")


def test_what_mlx_quantized_passes_whatever_it_was_before() -> None:
    check_method({"quantization": {"bits": 4}, "quantization_config": {"quant_method": "gptq"}}, "x")


@pytest.mark.parametrize("others", [{}, {"config.json": config("awq")}, {"README.md": b"x"}])
def test_a_gguf_repository_is_told_so(hub: FakeHub, others: dict[str, bytes]) -> None:
    hub.add(REPO, {"trinity-mini-Q4_K_M.gguf": b"GGUF", **others})
    with pytest.raises(HubError, match="GGUF files, which are llama") as error:
        resolve(REPO)
    assert str(error.value).endswith(INSTEAD)
    assert hub.fetched() == set()


@pytest.mark.parametrize("act", [load_model, load, resolve])
def test_a_gguf_file_is_told_so(tmp_path: Path, act: Any) -> None:
    path = tmp_path / "Trinity-Mini-Q4_K_M.gguf"
    path.write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match="is a GGUF file") as error:
        act(str(path))
    assert str(error.value).endswith(INSTEAD)


@pytest.mark.parametrize("act", [load_model, load, lambda source: convert(source, source / "out")])
def test_a_folder_of_gguf_files_is_told_so(tmp_path: Path, act: Any) -> None:
    folder = tmp_path / "Trinity-Mini-GGUF"
    folder.mkdir()
    (folder / "model-Q4.gguf").write_bytes(b"GGUF")
    with pytest.raises(AfmoeError, match="holds GGUF files") as error:
        act(folder)
    assert str(error.value).endswith(INSTEAD)


def test_a_licence_travels_from_the_hub_to_a_conversion(hub: FakeHub, tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "a")
    texts = {"LICENSE": b"one", "LICENSE-MODEL.txt": b"two", "NOTICE": b"three"}
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    hub.add(REPO, files | texts | {"README.md": b"x", "docs/LICENSE": b"another's"})
    convert(REPO, tmp_path / "b", quantize=False)
    found = {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}
    assert {name: found.get(name) for name in texts} == texts
    convert(tmp_path / "b", tmp_path / "c", group_size=32)
    assert texts.items() <= {path.name: path.read_bytes() for path in (tmp_path / "c").iterdir()}.items()
