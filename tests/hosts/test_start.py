"""What is decided before anything is loaded, and what each host is told to load."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from afmoe_mlx import device, load
from afmoe_mlx.errors import FitError, InputError
from afmoe_mlx.hosts import start
from afmoe_mlx.hosts.hostfile import Host, Hosts
from afmoe_mlx.hosts.orders import Answer, Done, Facts, Load, Order
from afmoe_mlx.hosts.start import Stored, difference, open_stored, share_out
from afmoe_mlx.hosts.versions import versions
from helpers.tiny import tiny_folder

MACS = Hosts((Host("mac1", "10.0.0.1"), Host("mac2", "10.0.0.2"), Host("mac3", "10.0.0.3")), "ring")
HERE = Hosts((Host("mac1", "127.0.0.1"), Host("localhost", "127.0.0.1"), Host("mac3", "10.0.0.3")), "ring")
GB = 10**9


class Told:
    """Followers that load at once, and hold all that they are told."""

    def __init__(self) -> None:
        self.orders: list[Order] = []

    def tell_one(self, _: int, order: Order) -> None:
        self.orders.append(order)

    def answers(self) -> Sequence[Answer]:
        return [Done() for _ in self.orders]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("model"), num_hidden_layers=6)


def stored_at(folder: Path, **options: Any) -> Stored:
    known = {"name": None, "dtype": None, "revision": None, "context": 64, "kv_quantization": None}
    return open_stored(folder, **(known | options))


def facts(stored: Stored, *, usable: int | None = GB) -> Facts:
    version, mlx = versions()
    known: dict[str, Any] = {"identity": stored.identity, "samples": stored.samples, "port": 1}
    return Facts(version, mlx, "a Mac", usable, usable, bandwidth=GB, **known)


def test_what_a_host_has_that_is_not_the_same_is_named(folder: Path, tmp_path: Path) -> None:
    stored = stored_at(folder)
    same = facts(stored)
    assert difference(same, stored) is None
    assert "version 0.0.1 of this program" in str(difference(replace(same, version="0.0.1"), stored))
    assert "version 0.0.1 of MLX" in str(difference(replace(same, mlx="0.0.1"), stored))
    assert "no such folder" in str(difference(replace(same, problem="no such folder"), stored))
    other = facts(stored_at(tiny_folder(tmp_path, num_hidden_layers=7)))
    assert "another model" in str(difference(other, stored))


def test_processes_of_this_machine_share_its_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "memory", lambda: device.Memory(GB, GB))
    stored = stored_at(folder)
    each = [facts(stored), facts(stored)]
    assert [share.usable for share in share_out(stored, HERE, each, force=False)] == [GB // 2, GB // 2, GB]
    assert [share.usable for share in share_out(stored, MACS, each, force=False)] == [GB, GB, GB]


def test_what_does_not_fit_is_refused_unless_forced(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "memory", lambda: device.Memory(GB, GB))
    stored = stored_at(folder)
    each = [facts(stored, usable=1000), facts(stored, usable=None)]
    with pytest.raises(FitError, match="mac2 needs"):
        share_out(stored, MACS, each, force=False)
    assert len(share_out(stored, MACS, each, force=True)) == 3


def test_each_host_is_told_its_layers_and_bytes_of_experts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "memory", lambda: device.Memory(GB, 1000))
    stored = stored_at(folder, experts_in_memory="auto")
    shares = share_out(stored, MACS, [facts(stored, usable=1000), facts(stored, usable=None)], force=True)
    crew = Told()
    model = start._load(crew, stored, shares, 0, force=True)  # type: ignore[arg-type]
    loads = [order for order in crew.orders if isinstance(order, Load)]
    assert [range(order.first, order.last) for order in loads] == [share.part for share in shares[1:]]
    least, all_of_them = (order.experts_in_memory for order in loads)
    assert least == shares[1].footprint.experts.least  # type: ignore[union-attr]
    assert all_of_them is None
    assert model.part == shares[0].part
    assert model.reads_experts


@pytest.mark.parametrize("options", [{"context": 0}, {"context": -1}, {"experts_in_memory": -1}], ids=str)
def test_what_makes_no_sense_is_told_before_any_host_is_started(
    options: dict[str, Any], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts = tmp_path / "hosts.json"
    hosts.write_text('[{"ssh": "mac1", "ips": ["10.0.0.1"]}, {"ssh": "mac2", "ips": ["10.0.0.2"]}]')
    monkeypatch.setattr(start, "connected", lambda *_: pytest.fail("a host was started"))
    with pytest.raises(InputError, match="expected a number of"):
        load(folder, hosts=hosts, **options)
