"""A model on the Hub is converted as its shards come, to the bytes that a conversion of its folder gives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from afmoe_mlx import convert
from afmoe_mlx.errors import ConversionError, HubError
from helpers.hub_server import REPO, FakeHub, use_hub
from helpers.tiny import tiny_folder

WIDE = {"hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 64}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain model of several shards, each larger than a layer."""
    folder = tmp_path_factory.mktemp("published")
    return convert(tiny_folder(folder / "made", **WIDE), folder / "model", quantize=False, shard_bytes=420_000)


@pytest.fixture(scope="module")
def expected(published: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return contents(convert(published, tmp_path_factory.mktemp("expected") / "model", group_size=32))


@pytest.fixture
def hub(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    from huggingface_hub import close_session

    monkeypatch.setattr("afmoe_mlx.checkpoint.shards.PAUSES", ())
    with FakeHub(tmp_path / "served") as server:
        use_hub(monkeypatch, server.url, tmp_path / "home")
        server.add(REPO, contents(published))
        yield server
        close_session()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names(published: Path) -> list[str]:
    return sorted(path.name for path in published.glob("*.safetensors"))


def downloaded(*folders: Path) -> set[str]:
    """The shards in the Hub cache and beside the destination, what is being made aside."""
    found = [path for folder in folders for path in folder.rglob("*.safetensors") if "model" not in path.parts]
    return {path.name for path in found}


def set_free(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Have our own look at the disk find so many bytes free."""
    fake = SimpleNamespace(disk_usage=lambda path: SimpleNamespace(free=count))
    monkeypatch.setattr("afmoe_mlx.conversion.space.shutil", fake)


def shards_fetched(hub: FakeHub) -> list[str]:
    paths = [item.path for item in hub.requests if item.method == "GET" and item.range is None]
    return [path.rpartition("/")[2] for path in paths if path.endswith(".safetensors")]


@pytest.mark.parametrize("low_disk", [False, True])
def test_the_result_is_that_of_the_folder(
    hub: FakeHub, published: Path, expected: dict[str, bytes], tmp_path: Path, low_disk: bool
) -> None:
    assert len(names(published)) > 3
    assert contents(convert(REPO, tmp_path / "out", group_size=32, low_disk=low_disk)) == expected
    assert sorted(shards_fetched(hub)) == names(published)
    assert downloaded(tmp_path / "home") == (set() if low_disk else set(names(published)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "out", "served"]


def test_on_a_low_disk_two_shards_are_there_at_most(hub: FakeHub, published: Path, tmp_path: Path) -> None:
    most = 0

    def look(*_: object) -> None:
        nonlocal most
        most = max(most, len(downloaded(tmp_path / "home", tmp_path / ".out.partial" / "downloads")))

    convert(REPO, tmp_path / "out", group_size=32, low_disk=True, on_progress=look, on_fetched=look)
    assert most == 2


@pytest.mark.parametrize("low_disk", [False, True])
@pytest.mark.parametrize("shard", [0, 2, -1])
def test_a_connection_that_stays_down_is_one_line_and_the_next_run_continues(
    hub: FakeHub, published: Path, expected: dict[str, bytes], tmp_path: Path, low_disk: bool, shard: int
) -> None:
    name = names(published)[shard]
    hub.cut = {name: 10**6}
    with pytest.raises(HubError, match=f"lacks {name}.*run the same command again to continue") as error:
        convert(REPO, tmp_path / "out", group_size=32, low_disk=low_disk)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
    hub.cut = {}
    assert contents(convert(REPO, tmp_path / "out", group_size=32, low_disk=low_disk)) == expected
    assert {shards_fetched(hub).count(other) for other in names(published) if other != name} == {1}


def test_a_shard_with_a_wrong_hash_is_named_and_nothing_appears(hub: FakeHub, published: Path, tmp_path: Path) -> None:
    name = names(published)[1]
    hub.damaged = {name: 99}
    with pytest.raises(HubError, match=f"{name} came as sha256"):
        convert(REPO, tmp_path / "out", group_size=32)
    assert not (tmp_path / "out").exists()
    assert name not in downloaded(tmp_path / "home")


def test_an_interrupt_stops_the_download_and_the_next_run_continues(
    hub: FakeHub, expected: dict[str, bytes], tmp_path: Path
) -> None:
    def interrupt(progress: object) -> None:
        if progress.layer == 1:  # type: ignore[attr-defined]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(REPO, tmp_path / "out", group_size=32, on_progress=interrupt)
    before = len(hub.requests)
    assert not list((tmp_path / "home").rglob("*.incomplete"))
    assert contents(convert(REPO, tmp_path / "out", group_size=32)) == expected
    again = [name for name in set(shards_fetched(hub)) if shards_fetched(hub).count(name) > 1]
    assert len(again) <= 1  # the one that was being fetched
    assert before < len(hub.requests)


@pytest.mark.parametrize(("low_disk", "advice"), [(False, "free space, or pass --low-disk"), (True, "free space")])
def test_too_small_a_disk_is_said_before_anything_is_fetched(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, low_disk: bool, advice: str
) -> None:
    set_free(monkeypatch, 1000)
    with pytest.raises(ConversionError, match=f"for what is written and .* for the download: {advice}$"):
        convert(REPO, tmp_path / "out", group_size=32, low_disk=low_disk)
    assert shards_fetched(hub) == []


def test_with_room_for_a_low_disk_alone_it_is_enough(
    hub: FakeHub, expected: dict[str, bytes], published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    largest = max((published / name).stat().st_size for name in names(published))
    room = sum(len(body) for body in expected.values()) + 2 * largest
    set_free(monkeypatch, room)
    with pytest.raises(ConversionError, match="--low-disk"):
        convert(REPO, tmp_path / "out", group_size=32)
    assert contents(convert(REPO, tmp_path / "out", group_size=32, low_disk=True)) == expected
