"""Whether hosts mean the same model is told before anything is loaded, from a few bytes."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from afmoe_mlx.checkpoint import load_model, resolve
from afmoe_mlx.checkpoint.files import find_weights, read_config_json, read_headers
from afmoe_mlx.checkpoint.random import save_random
from afmoe_mlx.hosts import identity
from afmoe_mlx.hosts.identity import digest, samples
from afmoe_mlx.hosts.orders import Facts, Hello
from afmoe_mlx.hosts.process import FollowerProcess
from afmoe_mlx.hosts.start import difference, open_stored
from helpers.checkpoints import golden, stacked, write
from helpers.hub_server import REPO, FakeHub
from helpers.tiny import BASES

MADE = golden("afmoe-base")


@pytest.fixture(scope="module", params=[None, stacked], ids=["an expert", "stacked"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return write(folder / "model", MADE.config, MADE.tensors, layout=request.param, shards=2)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A model as the Hub has it."""
    folder = write(tmp_path_factory.mktemp("files"), MADE.config, MADE.tensors, shards=2)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(autouse=True)
def _no_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody asks how fast memory is."""
    monkeypatch.setattr("afmoe_mlx.device.copy_bandwidth", lambda _: 1e9)


def sampled(folder: Path) -> dict[str, str]:
    return samples(folder, read_headers(find_weights(folder)))


@given(data=st.data())
def test_a_fine_tune_of_any_matrix_outside_of_experts_is_another_model(folder: Path, data: st.DataObject) -> None:
    """Whose every number is a little different, as after training."""
    path = data.draw(st.sampled_from(find_weights(folder)))
    tensors = load_file(path)
    name = data.draw(st.sampled_from([name for name in sorted(tensors) if ".experts." not in name]))
    before = sampled(folder)
    try:
        save_file(tensors | {name: (tensors[name] * np.float32(1.001) + np.float32(1e-6))}, path)
        after = sampled(folder)
    finally:
        save_file(tensors, path)
    assert {file for file in before if before[file] != after[file]} == {path.name}


def test_a_fine_tune_of_some_experts_is_another_model(folder: Path) -> None:
    """As of those that a task uses most."""
    changed = folder.parent / "changed"
    shutil.copytree(folder, changed, dirs_exist_ok=True)
    for path in find_weights(changed):
        tensors = load_file(path)
        for name in tensors:
            if ".experts.0." in name or (".experts." in name and tensors[name].ndim == 3):
                first = tensors[name] if tensors[name].ndim == 2 else tensors[name][:1]
                first *= np.float32(1.001)
        save_file(tensors, path)
    before, after = sampled(folder), sampled(changed)
    assert all(before[file] != after[file] for file in before)


def test_few_bytes_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = {"hidden_size": 512, "moe_intermediate_size": 512, "num_experts": 32, "layer_types": None}
    folder = save_random(tmp_path / "model", {"model_type": "afmoe"} | BASES["afmoe"] | wide, bits=4)
    headers = read_headers(find_weights(folder))
    read: list[int] = []
    pread = os.pread
    monkeypatch.setattr(identity.os, "pread", lambda fd, n, at: read.append(n) or pread(fd, n, at))
    samples(folder, headers)
    assert len(read) <= len(headers) * identity.PLACES
    assert sum(read) <= len(read) * identity.SAMPLE + identity.END
    assert sum(read) < sum(header.nbytes for header in headers.values()) // 20


def test_what_config_and_headers_say_counts(folder: Path) -> None:
    raw, headers = read_config_json(folder), read_headers(find_weights(folder))
    name = next(iter(headers))
    assert digest(raw, headers) == digest(dict(reversed(raw.items())), dict(reversed(headers.items())))
    assert digest(raw | {"rms_norm_eps": 1e-3}, headers) != digest(raw, headers)
    assert digest(raw, {key: value for key, value in headers.items() if key != name}) != digest(raw, headers)


# Two machines' caches of one Hub


def facts(name: str, revision: str | None, tmp_path: Path) -> Facts:
    """What a follower says of a model."""
    process = FollowerProcess(
        sys.stdin.buffer, sys.stdout, locate=lambda source: source, directory=tmp_path, silence=60.0
    )
    return process._facts(Hello(name, revision, "127.0.0.1"))


def use_cache(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))


def other(files: dict[str, bytes]) -> dict[str, bytes]:
    """A fine-tune."""
    return {name: body[:-4] + b"abcd" if name.endswith(".safetensors") else body for name, body in files.items()}


def test_hosts_take_the_commit_of_the_leader(
    hub: FakeHub, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the branch is when they look, and whatever files each has."""
    commit = hub.add(REPO, files)
    load_model(REPO, part=range(1))
    stored = open_stored(REPO, None, None, None, None, None)
    assert stored.revision == commit
    new = hub.add(REPO, other(files))
    use_cache(monkeypatch, tmp_path / "mac2")
    found = facts(stored.name, stored.revision, tmp_path)
    assert difference(found, stored) is None
    assert found.samples == {}  # nothing was fetched yet
    assert difference(facts(stored.name, stored.revision, tmp_path), stored) is None
    load_model(REPO, part=range(1, 2), revision=stored.revision)
    assert {path.parent.name for path in (tmp_path / "mac2").rglob("*.safetensors")} == {commit}
    use_cache(monkeypatch, tmp_path / "mac3")
    assert open_stored(REPO, None, None, None, None, None).revision == new


def test_a_follower_that_cannot_have_the_commit_says_so(
    hub: FakeHub, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(REPO, files)
    stored = open_stored(REPO, None, None, None, None, None)
    use_cache(monkeypatch, tmp_path / "mac2")
    hub.stop()
    trouble = difference(facts(stored.name, stored.revision, tmp_path), stored)
    assert trouble is not None
    assert trouble.startswith(f"cannot take part: cannot fetch {REPO}: ")


def test_a_folder_and_what_nobody_has_fetched_yet_cannot_be_compared(
    hub: FakeHub, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of LM Studio on one of the machines alone."""
    hub.add(REPO, files)
    studio = tmp_path / "studio"
    (studio / REPO).mkdir(parents=True)
    for name, body in files.items():
        (studio / REPO / name).write_bytes(body)
    monkeypatch.setattr("afmoe_mlx.checkpoint.hub.LM_STUDIO", (str(studio),))
    stored = open_stored(REPO, None, None, None, None, None)
    assert stored.revision is None
    monkeypatch.setattr("afmoe_mlx.checkpoint.hub.LM_STUDIO", ())
    found = difference(facts(stored.name, stored.revision, tmp_path), stored)
    assert found is not None
    assert "--revision main" in found
    load_model(REPO, part=range(1))  # now there is something to compare
    assert difference(facts(stored.name, stored.revision, tmp_path), stored) is None
    hub.add(REPO, other(files))
    load_model(REPO, part=range(1))
    found = difference(facts(stored.name, stored.revision, tmp_path), stored)
    assert found == f"has another model as {REPO}: copy this machine's there, or remove what it has"


def test_a_folder_of_the_cache_is_a_folder(hub: FakeHub, files: dict[str, bytes], tmp_path: Path) -> None:
    hub.add(REPO, files)
    stored = open_stored(resolve(REPO), None, None, None, None, None)
    assert stored.revision is None
    assert difference(facts(stored.name, stored.revision, tmp_path), stored) is None


@pytest.mark.parametrize("name", ["~/nothing", "/nowhere/model", "nothing"])
def test_a_follower_without_the_model_says_so(name: str, tmp_path: Path) -> None:
    found = facts(name, None, tmp_path).problem
    assert found is not None
    assert "\n" not in found
    assert "model" in found or "folder" in found


def test_a_follower_with_a_damaged_model_says_so(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", MADE.config, MADE.tensors)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    found = facts(str(folder), None, tmp_path).problem
    assert found is not None
    assert "not a whole safetensors file" in found
