"""Of a model on the Hub, the files that hold a part are fetched, and no others."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import mlx.core as mx
import pytest
from huggingface_hub import constants
from mlx.utils import tree_flatten

from afmoe_mlx.checkpoint import load_model, resolve
from afmoe_mlx.checkpoint.files import INDEX
from afmoe_mlx.checkpoint.hub import resolve_headers
from afmoe_mlx.checkpoint.hub_cache import remove_cached
from afmoe_mlx.checkpoint.verify import Headers
from afmoe_mlx.errors import CheckpointError, FitError, HubError
from afmoe_mlx.models import CausalLM, ExpertPlacement, ModelConfig
from helpers.experts import WIDE, wide_folder
from helpers.hub_server import REPO, FakeHub
from helpers.shards import shards_fetched, shards_in

LAYERS = WIDE["num_hidden_layers"]
SHARDS = [f"model-{i + 1:05}-of-{LAYERS:05}.safetensors" for i in range(LAYERS)]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    """A model of which each file holds a layer, and the first what stands around them."""
    folder = wide_folder(tmp_path / "model", "afmoe", bits=4, group_size=32)
    tensors: dict[str, mx.array] = {}
    for path in folder.glob("*.safetensors"):
        tensors |= mx.load(str(path))
    of = {name: SHARDS[int(name.split(".")[2]) if ".layers." in name else 0] for name in tensors}
    found = {"config.json": (folder / "config.json").read_bytes(), INDEX: json.dumps({"weight_map": of}).encode()}
    for shard in SHARDS:
        mx.save_safetensors(str(tmp_path / shard), {name: a for name, a in tensors.items() if of[name] == shard})
        found[shard] = (tmp_path / shard).read_bytes()
    return found


def weights(model: CausalLM) -> dict[str, mx.array]:
    return dict(tree_flatten(model.parameters()))


def cached(home: str | None = None) -> set[str]:
    return shards_in(Path(home or constants.HF_HUB_CACHE))


def test_each_part_fetches_its_files_and_a_whole_load_the_rest(hub: FakeHub, files: dict[str, bytes]) -> None:
    hub.add(REPO, files)
    for first, last in pairwise((0, 1, LAYERS)):
        hub.requests.clear()
        load_model(REPO, part=range(first, last))
        assert set(shards_fetched(hub)) == set(SHARDS[first:last])
        if not first:
            assert cached() == {SHARDS[0]}
    remove_cached(REPO)
    load_model(REPO, part=range(1, 2))
    hub.requests.clear()
    whole = load_model(REPO)[0]
    assert set(shards_fetched(hub)) == {SHARDS[0], *SHARDS[2:]}
    assert len(whole.layers) == LAYERS


def test_a_part_that_was_fetched_needs_no_network_again(hub: FakeHub, files: dict[str, bytes]) -> None:
    hub.add(REPO, files)
    part = range(1, 2)
    before, headers = weights(load_model(REPO, part=part)[0]), resolve_headers(REPO)[1]
    hub.requests.clear()
    load_model(REPO, part=part)
    assert len(hub.requests) == 1  # for a newer commit
    hub.stop()
    after = weights(load_model(REPO, part=part)[0])
    assert all(mx.array_equal(array, after[name]) for name, array in before.items())
    again = resolve_headers(REPO)[1]
    assert {name: (t.file.name, t.shape, t.dtype) for name, t in again.items()} == {
        name: (t.file.name, t.shape, t.dtype) for name, t in headers.items()
    }
    for refused in (lambda: load_model(REPO), lambda: load_model(REPO, part=range(1))):
        with pytest.raises(HubError, match="lacks"):
            refused()


def test_a_whole_model_serves_every_part_without_the_network(hub: FakeHub, files: dict[str, bytes]) -> None:
    hub.add(REPO, files)
    resolve(REPO)
    hub.stop()
    assert len(load_model(REPO, part=range(1, LAYERS))[0].layers) == LAYERS - 1


@pytest.mark.parametrize("damage", ["", "[]", '{"a": 3}', '{"a": ["x", 3, "F32"]}', '{"a": [1, [2], "F32"]}'])
def test_what_is_kept_of_headers_and_is_damaged_is_fetched_again(
    hub: FakeHub, files: dict[str, bytes], damage: str
) -> None:
    commit = hub.add(REPO, files)
    load_model(REPO, part=range(1, 2))
    kept = next(Path(constants.HF_HUB_CACHE).rglob(f"{commit}.json"))
    kept.write_text(damage)
    load_model(REPO, part=range(1, 2))
    load_model(REPO, part=range(2, 3))
    assert cached() == set(SHARDS[1:3])


def test_what_is_kept_goes_with_the_model(hub: FakeHub, files: dict[str, bytes]) -> None:
    hub.add(REPO, files)
    load_model(REPO, part=range(1, 2))
    remove_cached(REPO)
    assert [path for path in Path(constants.HF_HUB_CACHE).rglob("*.json") if ".locks" not in path.parts] == []


def test_a_part_is_refused_before_it_is_fetched(hub: FakeHub, files: dict[str, bytes]) -> None:
    hub.add(REPO, files)
    seen: list[tuple[int, int]] = []

    def check(config: ModelConfig, headers: Headers) -> None:
        seen.append((config.num_hidden_layers, len(headers)))
        raise FitError("too large")

    with pytest.raises(FitError):
        load_model(REPO, part=range(1, 3), check=check)
    assert cached() == set()
    own = [name for name in json.loads(files[INDEX])["weight_map"] if ".layers.1." in name or ".layers.2." in name]
    assert seen == [(2, len(own))]


def test_a_file_that_is_damaged_is_named(hub: FakeHub, files: dict[str, bytes]) -> None:
    hub.add(REPO, files)
    load_model(REPO, part=range(1, 2))
    path = next(Path(constants.HF_HUB_CACHE).rglob(SHARDS[1]))
    path.resolve().write_bytes(files[SHARDS[1]][:-1])
    with pytest.raises(CheckpointError, match=rf"{SHARDS[1]}: not a whole safetensors file"):
        load_model(REPO, part=range(1, 2))


def test_all_files_are_of_one_commit(hub: FakeHub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    from afmoe_mlx.checkpoint import remote

    commit = hub.add(REPO, files)
    asked: list[str] = []
    read = remote._read_header

    def move(repo: str, commit: str, file: str) -> object:
        """The branch moves while headers are read."""
        hub.add(REPO, files | {SHARDS[1]: b"another"})
        asked.append(commit)
        return read(repo, commit, file)

    monkeypatch.setattr(remote, "_read_header", move)
    load_model(REPO, part=range(1, 2))
    assert set(asked) == {commit}
    assert {path.parent.name for path in Path(constants.HF_HUB_CACHE).rglob("*.safetensors")} == {commit}


def test_experts_of_a_part_are_read_from_the_files_that_were_fetched(hub: FakeHub, files: dict[str, bytes]) -> None:
    hub.add(REPO, files)
    few, config = load_model(REPO, part=range(2, 3), place=lambda *_: ExpertPlacement(2))
    whole = load_model(REPO, part=range(2, 3))[0]
    h = mx.random.normal((1, 5, config.hidden_size))
    a, b = (model.part_of(h, model.chunk((1, 5), model.make_cache())) for model in (few, whole))
    assert mx.array_equal(a, b)
    assert few.reads_experts
    assert cached() == {SHARDS[2]}
