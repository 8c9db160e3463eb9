"""On a low disk, a source on the Hub keeps no more of its shards than it has to."""

from __future__ import annotations

from pathlib import Path

from afmoe_mlx.checkpoint.hub import resolve
from afmoe_mlx.conversion.source import open_source
from helpers.hub_server import REPO, FakeHub
from helpers.shards import NAMES, SHARDS, settle, shards_fetched, shards_in


def test_with_a_low_disk_at_most_two_shards_are_there_and_none_in_the_end(hub: FakeHub, tmp_path: Path) -> None:
    downloads = tmp_path / "low"
    source = open_source(REPO, downloads=downloads)
    source.expect(NAMES)
    most = 0
    for name in NAMES:
        assert source.file(name).read_bytes() == SHARDS[name]
        settle(source)
        most = max(most, len(shards_in(tmp_path / "low")))
        source.done(name)
        settle(source)
        most = max(most, len(shards_in(tmp_path / "low")))
    assert most == 2
    assert shards_in(tmp_path / "home") == set()
    source.close()
    assert not downloads.exists()
    assert shards_fetched(hub) == NAMES


def test_with_a_low_disk_a_layer_across_two_shards_has_both(hub: FakeHub, tmp_path: Path) -> None:
    source = open_source(REPO, downloads=tmp_path / "low")
    source.expect(NAMES)
    paths = [source.file(name) for name in NAMES[:2]]
    settle(source)
    assert all(path.is_file() for path in paths)
    assert shards_in(tmp_path / "low") == set(NAMES[:2])
    source.done(NAMES[0])
    settle(source)
    assert shards_in(tmp_path / "low") == set(NAMES[1:3])


def test_with_a_low_disk_an_interrupted_run_keeps_what_it_had_not_used(hub: FakeHub, tmp_path: Path) -> None:
    first = open_source(REPO, downloads=tmp_path / "low")
    first.expect(NAMES)
    settle(first)
    first.close()
    left = tmp_path / "low/.cache/huggingface/download/x.12345678.incomplete"
    left.write_bytes(b"half")
    hub.requests.clear()
    second = open_source(REPO, downloads=tmp_path / "low")
    assert second.file(NAMES[0]).read_bytes() == SHARDS[NAMES[0]]
    assert shards_fetched(hub) == []
    assert not left.exists()


def test_with_a_low_disk_what_a_killed_run_was_done_with_is_removed(hub: FakeHub, tmp_path: Path) -> None:
    first = open_source(REPO, downloads=tmp_path / "low")
    assert all(first.file(name) for name in NAMES[:2])
    first.close()
    second = open_source(REPO, downloads=tmp_path / "low")
    second.expect(NAMES[1:])
    settle(second)
    assert shards_in(tmp_path / "low") == {NAMES[1]}


def test_a_low_disk_removes_nothing_that_the_cache_held_before(hub: FakeHub, tmp_path: Path) -> None:
    resolve(REPO)
    source = open_source(REPO, downloads=tmp_path / "low")
    for name in NAMES:
        source.file(name)
        source.done(name)
    assert shards_in(tmp_path / "home") == set(NAMES)
