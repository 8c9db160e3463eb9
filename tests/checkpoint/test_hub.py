"""From what a user typed to a local folder, against a Hub of the tests' own on loopback."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from afmoe_mlx.checkpoint.hub import INDEX, _snapshot, resolve, shard_names
from afmoe_mlx.checkpoint.hub_cache import cached_models, remove_cached
from afmoe_mlx.checkpoint.hub_errors import few, is_full_disk
from afmoe_mlx.errors import AfmoeError, CheckpointError, HubError
from helpers import ROOT
from helpers.hub_server import MODEL, REPO, SMALL, FakeHub, sharded


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def refused(*words: str, kind: type[AfmoeError] = HubError) -> Iterator[None]:
    """Expects an error of one line that says `words`."""
    with pytest.raises(kind) as error:
        yield
    assert [word for word in words if word not in str(error.value)] == []
    assert "\n" not in str(error.value)


def fetched(hub: FakeHub) -> Path:
    """The tiny model's folder, fetched."""
    hub.add(REPO, MODEL)
    return resolve(REPO)


def test_only_what_a_model_needs_is_fetched(hub: FakeHub) -> None:
    names = ["README.md", "tokenizer.model", "modeling.py", "pytorch_model.bin", "pytorch_model.bin.index.json"]
    names += ["consolidated.safetensors", "consolidated.safetensors.index.json", "original/params.json"]
    hub.add(REPO, MODEL | dict.fromkeys(names, b"x"))
    assert files(resolve(REPO)) == hub.fetched() == set(MODEL)


def test_without_weights_only_the_small_files_are_fetched(hub: FakeHub) -> None:
    hub.add(REPO, MODEL)
    assert files(resolve(REPO, weights=False)) == set(SMALL)


def test_weights_are_fetched_after_a_call_without_them(hub: FakeHub) -> None:
    hub.add(REPO, MODEL)
    resolve(REPO, weights=False)
    assert files(resolve(REPO)) == set(MODEL)


def test_only_the_shards_the_index_names_are_fetched(hub: FakeHub) -> None:
    content = sharded("model-a.safetensors", "model-b.safetensors")
    hub.add(REPO, content | {"model-old.safetensors": b"old"})
    assert files(resolve(REPO)) == set(content)


def test_a_revision_is_honoured(hub: FakeHub) -> None:
    old = hub.add(REPO, MODEL | {"tokenizer.json": b"old"}, branch="v1")
    hub.add(REPO, MODEL)
    for revision in ("v1", old):
        assert (resolve(REPO, revision=revision) / "tokenizer.json").read_bytes() == b"old"
    assert (resolve(REPO) / "tokenizer.json").read_bytes() == b"{}"


def test_a_new_commit_is_fetched(hub: FakeHub) -> None:
    fetched(hub)
    hub.add(REPO, MODEL | {"tokenizer.json": b"new"})
    assert (resolve(REPO) / "tokenizer.json").read_bytes() == b"new"


def test_the_token_opens_a_private_repository(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(REPO, MODEL)
    hub.private.add(REPO)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    resolve(REPO)
    assert {item.authorization for item in hub.requests} == {f"Bearer {hub.token}"}


def test_a_current_copy_costs_one_request(hub: FakeHub) -> None:
    folder = fetched(hub)
    hub.requests.clear()
    assert resolve(REPO) == folder
    assert len(hub.requests) == 1


def test_a_cached_commit_costs_no_request(hub: FakeHub) -> None:
    commit = hub.add(REPO, MODEL)
    folder = resolve(REPO, revision=commit)
    hub.requests.clear()
    assert resolve(REPO, revision=commit) == folder
    assert hub.requests == []


def test_without_a_network_the_cached_copy_is_used(hub: FakeHub, caplog: pytest.LogCaptureFixture) -> None:
    folder = fetched(hub)
    hub.stop()
    with caplog.at_level(logging.INFO, "afmoe_mlx"):
        assert resolve(REPO) == folder
    assert ["cached copy" in record.message for record in caplog.records if record.name == "afmoe_mlx"] == [True]


@pytest.mark.parametrize("status", [401, 429, 500])
def test_a_hub_in_trouble_does_not_hide_the_cached_copy(hub: FakeHub, status: int) -> None:
    folder = fetched(hub)
    hub.failing["/api/"] = status
    assert resolve(REPO) == folder


def test_offline_mode_asks_nobody(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fetched(hub)
    hub.requests.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert resolve(REPO) == folder
    assert hub.requests == []


def test_offline_mode_without_a_copy_is_one_line(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with refused(REPO, "HF_HUB_OFFLINE"):
        resolve(REPO)


@pytest.mark.parametrize("content", [MODEL, sharded("model-a.safetensors", "model-b.safetensors")])
def test_without_a_network_an_incomplete_copy_is_one_line(hub: FakeHub, content: dict[str, bytes]) -> None:
    hub.add(REPO, content)
    next((resolve(REPO)).glob("model*.safetensors")).unlink()
    hub.stop()
    with refused("lacks model", "connection failed"):
        resolve(REPO)


def test_a_hub_that_does_not_answer_is_one_line(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.silent = True
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 0.2)
    with refused("ReadTimeout"):
        resolve(REPO)


REFUSALS: dict[str, tuple[dict[str, Any], dict[str, bytes], tuple[str, ...]]] = {
    "gated": ({"gated": {REPO}}, MODEL, ("gated", f"/{REPO}", "HF_TOKEN")),
    "private": ({"private": {REPO}}, MODEL, ("no model", "private", "hf auth login")),
    "server": ({"failing": {"/api/": 500}}, MODEL, ("answered 500", "lacks it")),
    "no weights": ({}, SMALL, ("no weights", "safetensors")),
    "pickles": ({}, SMALL | {"pytorch_model.bin": b"x"}, ("only .bin", "convert to safetensors first")),
    "another name": ({}, SMALL | {"weights.safetensors": b"x"}, ("only weights.safetensors", "pick another repo")),
    "an adapter": ({}, {"adapter_config.json": b"{}", "adapters.safetensors": b"x"}, ("is an adapter, no model",)),
    "no config": ({}, {"model.safetensors": b"x"}, ("no config.json",)),
    "half an upload": ({}, MODEL | {INDEX: b'{"weight_map": {"a": "model-x.safetensors"}}'}, ("lacks model-x",)),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refusal_is_one_line_and_fetches_no_weights(hub: FakeHub, case: str) -> None:
    faults, content, words = REFUSALS[case]
    hub.add(REPO, content)
    for name, value in faults.items():
        setattr(hub, name, value)
    with refused(REPO, *words):
        resolve(REPO)
    assert not [name for name in hub.fetched() if name.endswith((".bin", ".safetensors"))]


def test_a_missing_revision_is_one_line_even_with_a_copy(hub: FakeHub) -> None:
    fetched(hub)
    with refused("no revision 'v9'"):
        resolve(REPO, revision="v9")


def test_a_refused_token_is_one_line(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(REPO, MODEL)
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    with refused("401", "check HF_TOKEN"):
        resolve(REPO)


def test_a_full_disk_is_one_line(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr("huggingface_hub.file_download.http_get", Mock(side_effect=full))
    hub.add(REPO, MODEL)
    with refused("disk is full", "HF_HOME"):
        resolve(REPO)


def test_a_full_disk_is_known_by_its_number_or_by_its_words() -> None:
    assert is_full_disk(OSError(errno.ENOSPC, "x"))
    assert is_full_disk(RuntimeError("No space left on device"))
    assert not is_full_disk(OSError(errno.EIO, "x"))


@pytest.mark.parametrize(("count", "said"), [(1, "a"), (3, "a, b, c"), (4, "a, b, c and 1 more")])
def test_of_many_files_three_are_named_and_the_others_counted(count: int, said: str) -> None:
    assert few("abcdef"[:count]) == said


def test_a_cache_that_cannot_be_written_is_one_line(hub: FakeHub, tmp_path: Path) -> None:
    hub.add(REPO, MODEL)
    (tmp_path / "home").touch()
    with refused("cannot write", "HF_HOME"):
        resolve(REPO)


@pytest.mark.parametrize("text", ["two words/name", "a/..", "a/b--c"])
def test_what_no_repository_is_called_is_one_line(hub: FakeHub, text: str) -> None:
    with refused("expected owner/name"):
        resolve(text)


def test_an_index_cannot_name_files_elsewhere(hub: FakeHub) -> None:
    hub.add(REPO, MODEL | {INDEX: b'{"weight_map": {"a": "../b"}}'})
    with refused("'../b'", kind=CheckpointError):
        resolve(REPO)


def test_a_connection_cut_once_is_resumed_where_it_broke(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 100)
    hub.add(REPO, MODEL)
    hub.cut, hub.cut_bytes = {"model.safetensors": 1}, 400
    assert (resolve(REPO) / "model.safetensors").read_bytes() == MODEL["model.safetensors"]
    assert "bytes=400-" in [item.range for item in hub.requests]


def test_a_broken_update_leaves_no_whole_file_and_keeps_the_copy_before_it(hub: FakeHub) -> None:
    before = fetched(hub)
    hub.add(REPO, MODEL | {"model.safetensors": b"new"})
    hub.cut = {"model.safetensors": 99}
    with refused("connection failed", "run it again"):
        resolve(REPO)
    assert [path.parent for path in before.parent.rglob("*.safetensors")] == [before]
    hub.stop()
    assert resolve(REPO) == before


def test_an_interrupt_passes_through(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        resolve(REPO)


def test_the_environment_rules_and_bars_need_a_terminal(hub: FakeHub, tmp_path: Path) -> None:
    hub.add(REPO, MODEL)
    hub.private.add(REPO)
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": hub.token, "HOME": str(tmp_path)}
    code = f"from afmoe_mlx.checkpoint.hub import resolve; print(resolve({REPO!r}))"
    command = [sys.executable, "-c", code]
    where = ROOT
    done = subprocess.run(command, env=os.environ | settings, cwd=where, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
    assert Path(done.stdout.strip()).is_relative_to(tmp_path / "hf" / "hub")


def test_the_cache_lists_our_models_alone(hub: FakeHub) -> None:
    old = hub.add(REPO, MODEL | {"tokenizer.json": b"old"}, branch="v1")
    new = hub.add(REPO, MODEL)
    hub.add("someone/llama", MODEL | {"config.json": b'{"model_type": "llama"}'})
    resolve(REPO, revision="v1")
    assert resolve("someone/llama").is_dir()
    folder = resolve(REPO)
    (model,) = cached_models()
    assert (model.repo, model.model_type, set(model.revisions)) == (REPO, "afmoe", {old, new})
    assert model.path == folder
    assert model.bytes == sum(len(body) for body in MODEL.values()) + len(b"old")


def test_what_is_removed_is_gone_and_counted(hub: FakeHub) -> None:
    fetched(hub)
    size = cached_models()[0].bytes
    assert remove_cached(REPO) == size
    assert cached_models() == []


def test_a_copy_with_the_same_commits_survives_a_removal(hub: FakeHub) -> None:
    copies = [f"someone/copy{i}" for i in range(3)]
    for repo in copies:
        hub.add(repo, MODEL, commit="a" * 40)
        resolve(repo)
    for i, repo in enumerate(copies):
        remove_cached(repo)
        assert [model.repo for model in cached_models()] == copies[i + 1 :]


def test_a_short_name_removes_its_repository(hub: FakeHub) -> None:
    hub.add("mlx-community/Trinity-Mini-4bit", MODEL)
    resolve("trinity-mini")
    assert remove_cached("Trinity-Mini") > 0


def test_removing_what_is_not_there_is_an_error(hub: FakeHub) -> None:
    with refused("nothing to remove"):
        remove_cached(REPO)


def test_without_a_cache_there_are_no_models(hub: FakeHub) -> None:
    assert cached_models() == []


@pytest.mark.parametrize("index", ["{", "[]", '"text"', "{}", '{"weight_map": []}', '{"weight_map": {"a": ["b"]}}'])
def test_an_index_that_makes_no_sense_is_damaged(hub: FakeHub, index: str) -> None:
    hub.add(REPO, MODEL | {INDEX: index.encode()})
    with refused(INDEX, "damaged", kind=CheckpointError):
        resolve(REPO)


def test_ctrl_c_is_heard_during_a_download_and_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    released, ended = threading.Event(), threading.Event()

    def snapshot_download(*_: object, tqdm_class: type[Any], **__: object) -> str:
        bar = tqdm_class(total=2)
        bar.update(1)
        os.kill(os.getpid(), signal.SIGINT)
        released.wait()
        with pytest.raises(InterruptedError):
            bar.update(1)
        ended.set()
        return ""

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(KeyboardInterrupt):
        _snapshot(REPO, "main", ["config.json"])
    assert not ended.is_set()
    released.set()
    assert ended.wait(10)


def test_one_of_several_shards_stands_for_all_where_there_is_no_index(tmp_path: Path) -> None:
    listing = ["config.json", "model-00002-of-00003.safetensors"]
    assert shard_names(tmp_path, listing) == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert shard_names(tmp_path, ["model.safetensors"]) == ["model.safetensors"]
