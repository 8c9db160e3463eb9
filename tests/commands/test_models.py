"""`afmoe-mlx models`: the short names, and a word before a huge download."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from afmoe_mlx.checkpoint import resolve
from afmoe_mlx.checkpoint.hub_cache import cached_models
from afmoe_mlx.checkpoint.names import MODEL_NAMES
from afmoe_mlx.device import Memory
from afmoe_mlx.errors import HubError
from afmoe_mlx.models.shapes import shape
from helpers.command_line import run
from helpers.hollow import header
from helpers.hub_server import MODEL, REPO, SMALL, FakeHub


def test_models_lists_the_short_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "afmoe_mlx", "models"]
    text = subprocess.run(command, capture_output=True, text=True, env=environment).stdout
    assert all(f"{row.name} " in text for row in MODEL_NAMES)
    assert "?" in next(line for line in text.splitlines() if line.startswith("lfm2.5-24b-a2b"))  # its size is not known
    value = json.loads(subprocess.run([*command, "--json"], capture_output=True, text=True, env=environment).stdout)
    assert [row["cached_bytes"] for row in value["models"]] == [0] * len(MODEL_NAMES)


NARROW = {"vocab_size": 256, "num_experts": 8, "hidden_size": 512, "intermediate_size": 512}


def published(hub: FakeHub) -> int:
    """A model on the Hub, its weights all zeros; the bytes of its one file of weights."""
    config, head, size = header(shape("trinity-nano", layers=2) | NARROW, 4)
    weights = head + bytes(size)
    hub.add(REPO, SMALL | {"config.json": json.dumps(config).encode(), "model.safetensors": weights})
    return len(weights)


def sharded_on(hub: FakeHub) -> list[str]:
    """A model on the Hub in two files of weights, whose names are returned; the first comes first."""
    config, head, size = header(shape("trinity-nano", layers=2) | NARROW, 4)
    tensors = json.loads(head[8:])
    names = [f"model-{i + 1:05}-of-00002.safetensors" for i in range(2)]
    files = SMALL | {"config.json": json.dumps(config).encode()}
    for i, name in enumerate(names):
        text = json.dumps({key: tensors[key] for key in list(tensors)[i::2]}).encode()
        files[name] = len(text).to_bytes(8, "little") + text + bytes(size)
    weight_map = {key: names[i % 2] for i, key in enumerate(tensors)}
    hub.add(REPO, files | {"model.safetensors.index.json": json.dumps({"weight_map": weight_map}).encode()})
    return names


def test_a_model_is_fetched_ahead_of_its_use_and_once(hub: FakeHub) -> None:
    nbytes = published(hub)
    first, second = (run("models", "pull", REPO) for _ in range(2))
    folder = Path(first.out.strip())
    assert (first.code, first.out) == (second.code, second.out) == (0, f"{folder}\n")
    assert (folder / "model.safetensors").stat().st_size == nbytes
    assert [model.repo for model in cached_models()] == [REPO]
    assert hub.served["model.safetensors"] < 2 * nbytes  # and the header, before it


def test_of_a_download_that_was_broken_off_finished_files_are_kept(hub: FakeHub) -> None:
    names = sharded_on(hub)
    hub.cut, hub.cut_bytes = {names[1]: 100}, 1000
    failed = run("models", "pull", REPO)
    assert (failed.code, failed.out) == (1, "")
    assert failed.err.splitlines()[-1].startswith("error: ")
    hub.cut.clear()
    before = dict(hub.served)
    folder = Path(run("models", "pull", REPO).out.strip())
    assert [(folder / name).is_file() for name in names] == [True, True]
    again = {name: hub.served[name] - before.get(name, 0) for name in names}
    size = (folder / names[0]).stat().st_size
    assert again[names[0]] < size / 2 < again[names[1]]  # of the first its header alone


def test_an_interrupted_download_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("afmoe_mlx.commands.models.resolve", _interrupt)
    result = run("models", "pull", REPO)
    assert (result.code, result.out) == (130, "")
    assert "run the same command again" in result.err


def test_what_does_not_fit_here_may_be_fetched_for_elsewhere(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    published(hub)
    monkeypatch.setattr("afmoe_mlx.device.memory", lambda: Memory(1000, 1000))
    result = run("models", "pull", REPO)
    assert result.code == 0
    assert f"warning: {REPO} needs" in result.err


def test_what_is_here_already_is_named(model: str) -> None:
    assert run("models", "pull", model).out == f"{model}\n"
    assert (Path(run("models", "pull", "demo").out.strip()) / "config.json").is_file()


def test_a_huge_download_is_named_before_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("afmoe_mlx.api.resolve", _refuse)
    result = run("generate", "--model", "trinity-large", "--prompt", "x")
    assert result.code == 1
    assert "797 GB" in result.err.splitlines()[0]


@pytest.mark.parametrize("trouble", [PermissionError(13, "Permission denied"), OSError(30, "Read-only file system")])
def test_a_cache_that_cannot_be_written_to_is_one_line(
    trouble: OSError, hub: FakeHub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hub.add(REPO, MODEL)
    resolve(REPO)

    def refuse(*_: object, **__: object) -> None:
        raise trouble

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", refuse)
        patch.setattr("os.remove", refuse)
        result = run("models", "rm", REPO)
    assert result.code == 1
    assert result.err.startswith(f"error: {REPO!r} could not be removed from ")
    assert result.err.count("\n") == 1
    assert not caplog.records  # the library says nothing before
    assert run("models", "rm", REPO).code == 0


def _interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def _refuse(*_: object, **__: object) -> None:
    raise HubError("no network in tests")
