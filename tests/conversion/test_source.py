"""A source on the Hub gives its shards one after another, verified."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from unittest.mock import Mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from afmoe_mlx.checkpoint.hub import resolve
from afmoe_mlx.conversion.source import open_source
from afmoe_mlx.conversion.space import check_space
from afmoe_mlx.errors import CheckpointError, ConversionError, HubError
from helpers import hub_server
from helpers.hub_server import CONFIG, REPO, SMALL, FakeHub
from helpers.shards import MODEL, NAMES, SHARDS, WEIGHT_MAP, local, settle, shards_fetched, shards_in


def test_headers_are_known_before_any_shard_is_fetched(hub: FakeHub) -> None:
    source = open_source(REPO)
    assert {name: tensor.file.name for name, tensor in source.headers.items()} == WEIGHT_MAP
    assert source.headers["layer1"].shape == (10, 100)
    assert shards_in(source.folder) == set()
    assert (source.folder / "config.json").read_bytes() == CONFIG


def test_shards_come_whole(hub: FakeHub) -> None:
    source = open_source(REPO)
    assert {name: source.file(name).read_bytes() for name in NAMES} == SHARDS


def test_the_next_shard_expected_is_fetched_while_one_is_in_use_and_no_other(hub: FakeHub) -> None:
    source = open_source(REPO)
    source.expect(NAMES[::-1])
    settle(source)
    assert shards_fetched(hub) == NAMES[:2:-1]
    for asked in range(1, 5):
        source.file(NAMES[-asked])
        settle(source)
        assert shards_fetched(hub) == NAMES[::-1][: asked + 1]


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(NAMES), asked=st.lists(st.sampled_from(NAMES), min_size=1, max_size=8))
def test_whatever_is_expected_and_asked_for_comes_once(
    hub: FakeHub, tmp_path_factory: pytest.TempPathFactory, order: list[str], asked: list[str]
) -> None:
    hub.requests.clear()
    source = open_source(REPO, downloads=tmp_path_factory.mktemp("downloads"))
    source.expect(order)
    for name in asked:
        assert source.file(name).read_bytes() == SHARDS[name]
    settle(source)
    fetched = shards_fetched(hub)
    assert len(fetched) == len(set(fetched)) <= len(set(asked)) + 1
    source.close()


def test_a_second_source_fetches_nothing_again(hub: FakeHub) -> None:
    first = open_source(REPO)
    assert all(first.file(name) for name in NAMES)
    hub.requests.clear()
    second = open_source(REPO)
    assert {name: second.file(name).read_bytes() for name in NAMES} == SHARDS
    assert shards_fetched(hub) == []
    assert (first.identity, first.headers.keys()) == (second.identity, second.headers.keys())


def test_a_whole_copy_needs_no_network(hub: FakeHub) -> None:
    identity = open_source(REPO).identity
    resolve(REPO)
    hub.stop()
    source = open_source(REPO)
    source.expect(NAMES)
    assert {name: source.file(name).read_bytes() for name in NAMES} == SHARDS
    assert source.identity == identity


def test_a_copy_damaged_on_the_disk_is_noticed_without_a_network(hub: FakeHub) -> None:
    path = resolve(REPO) / NAMES[0]
    path.resolve().write_bytes(SHARDS[NAMES[0]][:-1] + b"x")
    hub.stop()
    with pytest.raises(HubError, match=f"{NAMES[0]}.*connection failed.*run the same command again to continue"):
        open_source(REPO).file(NAMES[0])


@pytest.mark.parametrize("damage", [lambda body: body[:-1] + b"x", lambda body: body[:500], lambda body: b""])
def test_a_damaged_copy_in_the_cache_is_fetched_again(hub: FakeHub, damage) -> None:
    path = resolve(REPO) / NAMES[0]
    path.resolve().write_bytes(damage(SHARDS[NAMES[0]]))
    hub.requests.clear()
    source = open_source(REPO)
    assert {name: source.file(name).read_bytes() for name in NAMES} == SHARDS
    assert shards_fetched(hub) == NAMES[:1]


@pytest.mark.parametrize("is_low", [False, True])
def test_a_shard_that_comes_damaged_once_is_fetched_again(hub: FakeHub, tmp_path: Path, is_low: bool) -> None:
    hub.damaged = {NAMES[1]: 1}
    source = open_source(REPO, downloads=tmp_path / "low" if is_low else None)
    assert source.file(NAMES[1]).read_bytes() == SHARDS[NAMES[1]]


@pytest.mark.parametrize("is_low", [False, True])
def test_a_shard_that_keeps_coming_damaged_is_named_and_not_kept(hub: FakeHub, tmp_path: Path, is_low: bool) -> None:
    hub.damaged = {NAMES[1]: 99}
    source = open_source(REPO, downloads=tmp_path / "low" if is_low else None)
    with pytest.raises(HubError, match=rf"{REPO}: {NAMES[1]} came as sha256 \w+…, expected \w+…") as error:
        source.file(NAMES[1])
    assert "\n" not in str(error.value)
    assert shards_in(tmp_path / "home") == shards_in(tmp_path / "low") == set()


def test_what_is_kept_in_git_is_verified_by_gits_hash(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_server, "STORED_APART", ())
    assert open_source(REPO).file(NAMES[0]).read_bytes() == SHARDS[NAMES[0]]
    hub.damaged = {NAMES[1]: 99}
    with pytest.raises(HubError, match="sha1"):
        open_source(REPO).file(NAMES[1])


def test_a_connection_that_drops_more_often_than_the_library_tries_is_tried_again(hub: FakeHub) -> None:
    source = open_source(REPO)
    hub.cut = {NAMES[0]: 8}
    assert source.file(NAMES[0]).read_bytes() == SHARDS[NAMES[0]]


def test_a_connection_that_drops_while_headers_are_read_is_tried_again(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = Mock(side_effect=[OSError("connection lost"), {}])
    monkeypatch.setattr("afmoe_mlx.checkpoint.shards.read_remote_headers", lost)
    assert open_source(REPO).headers == {}
    assert lost.call_count == 2


def test_a_connection_that_stays_down_is_one_line_and_the_next_run_continues(hub: FakeHub) -> None:
    source = open_source(REPO)
    source.file(NAMES[0])
    hub.cut = {NAMES[1]: 10**6}
    with pytest.raises(HubError, match=rf"lacks {NAMES[1]}.*run the same command again to continue") as error:
        source.file(NAMES[1])
    assert "\n" not in str(error.value)
    hub.cut = {}
    assert source.file(NAMES[1]).read_bytes() == SHARDS[NAMES[1]]
    assert shards_fetched(hub).count(NAMES[0]) == 1


def test_what_fails_in_the_background_is_said_when_it_is_asked_for(hub: FakeHub) -> None:
    source = open_source(REPO)
    hub.failing = {NAMES[1]: 403}
    source.expect(NAMES)
    assert source.file(NAMES[0]).read_bytes() == SHARDS[NAMES[0]]
    settle(source)
    with pytest.raises(HubError, match="403"):
        source.file(NAMES[1])


def test_a_refusal_is_not_tried_again(hub: FakeHub) -> None:
    source = open_source(REPO)
    hub.failing = {NAMES[0]: 403}
    hub.requests.clear()
    with pytest.raises(HubError, match="403"):
        source.file(NAMES[0])
    assert len(hub.requests) == 1


@pytest.mark.parametrize("is_low", [False, True])
def test_a_full_disk_is_one_line(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_low: bool) -> None:
    full = Mock(side_effect=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    source = open_source(REPO, downloads=tmp_path / "low" if is_low else None)
    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    with pytest.raises(HubError, match="disk is full.*" + ("low" if is_low else "hub")):
        source.file(NAMES[0])
    assert full.call_count == 1


def test_without_a_low_disk_shards_stay_in_the_cache(hub: FakeHub) -> None:
    source = open_source(REPO)
    for name in NAMES:
        source.file(name)
        source.done(name)
    assert shards_in(resolve(REPO, weights=False)) == set(NAMES)


def test_what_killed_downloads_left_in_the_cache_is_removed_unless_one_is_under_way(hub: FakeHub) -> None:
    from filelock import FileLock

    source = open_source(REPO)
    digests = [source._model.shards[name].digest for name in NAMES]
    storage = source.folder.parents[1]
    left = [storage / "blobs" / f"{digest}.12345678.incomplete" for digest in digests]
    locks = storage.parent / ".locks" / storage.name
    locks.mkdir(parents=True, exist_ok=True)
    for path in left:
        path.write_bytes(b"half")
    with FileLock(locks / f"{digests[0]}.lock"):
        source._model._remove_leftovers(NAMES[0])
    assert left[0].exists()
    source.file(NAMES[1])
    assert [path.exists() for path in left] == [True, False, True, True]


def test_closing_ends_a_download_and_leaves_no_half_file(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(REPO)
    reached = threading.Event()
    whole = source._stopped.is_set

    def is_set() -> bool:
        reached.set()
        return whole() or source._stopped.wait(5)

    monkeypatch.setattr(source._stopped, "is_set", is_set)
    thread = threading.Thread(target=source.expect, args=(NAMES,))
    thread.start()
    assert reached.wait(5)
    source.close()
    thread.join(5)
    settle(source)
    assert shards_in(source.folder) == set()
    assert not list(source.folder.parents[1].rglob("*.incomplete"))


def test_bytes_are_counted_as_they_come(hub: FakeHub) -> None:
    seen: list[tuple[int, int]] = []
    source = open_source(REPO, on_fetched=lambda done, total: seen.append((done, total)))
    source.expect(NAMES)
    for name in NAMES:
        source.file(name)
    total = sum(len(body) for body in SHARDS.values())
    assert seen[-1] == (total, total)
    assert seen == sorted(seen)


def test_room_is_counted_for_what_is_not_here(hub: FakeHub, tmp_path: Path) -> None:
    size = len(SHARDS[NAMES[0]])
    one_each = [[name] for name in NAMES]
    source = open_source(REPO)
    assert source.bytes_to_fetch(one_each) == 4 * size
    source.file(NAMES[0])
    assert source.bytes_to_fetch(one_each) == 3 * size
    low = open_source(REPO, downloads=tmp_path / "low")
    a, b, c, d = NAMES
    needs = {2: one_each, 1: [[a], [b]], 3: [[a], [b, c, d]], 0: [[a]]}
    assert {count: low.bytes_to_fetch(groups) for count, groups in needs.items()} == {i: i * size for i in needs}
    assert low.bytes_to_fetch([[b], [c], [d], [b]]) == 2 * size
    assert low.bytes_to_fetch([[b], [c, d], [b]]) == 3 * size


def test_too_small_a_disk_is_one_line_beforehand(tmp_path: Path) -> None:
    check_space([(tmp_path / "a", 1000, "the download"), (tmp_path, 1000, "the result")])
    with pytest.raises(
        ConversionError, match=r"free, expected .*TB|GB for the download and .* for the result"
    ) as error:
        check_space([(tmp_path / "a" / "b", 10**17, "the download"), (tmp_path, 10**9, "the result")], "use --low-disk")
    assert "\n" not in str(error.value)
    assert str(error.value).endswith("use --low-disk")


REFUSALS = {
    "no weights": (SMALL, "no weights"),
    "pickles": (SMALL | {"pytorch_model.bin": b"x"}, "only .bin"),
    "half an upload": ({k: v for k, v in MODEL.items() if k != NAMES[2]}, f"lacks {NAMES[2]}"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_converted_is_refused_before_weights_are_fetched(hub: FakeHub, case: str) -> None:
    content, words = REFUSALS[case]
    hub.add(REPO, content)
    with pytest.raises(HubError, match=words):
        open_source(REPO)
    assert not [name for name in hub.fetched() if name.endswith((".bin", ".safetensors"))]


def test_a_header_that_makes_no_sense_is_one_line(hub: FakeHub) -> None:
    hub.add(REPO, SMALL | {"model.safetensors": b"w" * 1000})
    with pytest.raises(CheckpointError, match="expected a safetensors header"):
        open_source(REPO)


def test_commits_have_identities_of_their_own(hub: FakeHub) -> None:
    before = open_source(REPO)
    hub.add(REPO, MODEL | {NAMES[0]: SHARDS[NAMES[0]][:-1] + b"x"})
    after = open_source(REPO)
    assert before.identity != after.identity
    assert before.commit != after.commit
    assert open_source(REPO, revision=before.commit).identity == before.identity


def test_lm_studios_copy_is_used_first_if_it_is_whole(hub: FakeHub, tmp_path: Path) -> None:
    folder = tmp_path / "home/.lmstudio/models" / REPO
    source = local(folder)
    assert open_source(REPO).folder == source.folder
    assert hub.requests == []
    (folder / NAMES[0]).unlink()
    assert open_source(REPO).folder != source.folder
