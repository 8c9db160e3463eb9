"""What a device says of its memory, and the limits set on Metal, with the device's answers faked."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from afmoe_mlx import device, load, stream_generate
from helpers.tiny import tiny_folder

MB = 1 << 20
GPU_LIMIT = 10_000 * MB
MAC = {"device_name": "Apple M2 Pro", "memory_size": 16_000, "max_recommended_working_set_size": GPU_LIMIT}
FIRST_WIRED, FIRST_CACHE = 0, 15_000 * MB


class FakeMetal:
    """Answers as MLX does on Metal, and keeps the limits that are set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, active: int) -> None:
        self.wired, self.cache = FIRST_WIRED, FIRST_CACHE
        self.calls: list[str] = []
        monkeypatch.setattr(mx, "device_info", lambda: MAC)
        monkeypatch.setattr(mx, "get_active_memory", lambda: active)
        monkeypatch.setattr(mx, "set_wired_limit", self.set_wired_limit)
        monkeypatch.setattr(mx, "set_cache_limit", self.set_cache_limit)
        monkeypatch.setattr(mx, "synchronize", lambda: self.calls.append("synchronize"))

    def set_wired_limit(self, limit: int) -> int:
        assert limit <= GPU_LIMIT  # MLX raises above it
        self.calls.append(f"wired {limit}")
        self.wired, old = limit, self.wired
        return old

    def set_cache_limit(self, limit: int) -> int:
        assert limit >= 0
        self.cache, old = limit, self.cache
        return old

    @property
    def limits(self) -> tuple[int, int]:
        return self.wired, self.cache


@pytest.fixture
def metal(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], FakeMetal]:
    return lambda active: FakeMetal(monkeypatch, active)


FIRST = (FIRST_WIRED, FIRST_CACHE)


def test_on_metal_a_model_may_have_what_the_gpu_may_hold_less_what_it_holds(metal: Callable[[int], FakeMetal]) -> None:
    metal(2_000 * MB)
    assert device.memory() == device.Memory(total=16_000, usable=8_000 * MB)
    assert device.device_name() == "Apple M2 Pro"
    metal(11_000 * MB)
    assert device.memory().usable == 0


def test_on_cuda_a_model_may_have_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    info = {"device_name": "NVIDIA H100", "total_memory": 80_000, "free_memory": 70_000}
    monkeypatch.setattr(mx, "device_info", lambda: info)
    assert device.memory() == device.Memory(total=80_000, usable=70_000)


def test_on_the_cpu_a_model_may_have_what_linux_says_is_available(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       1000 kB\nMemFree:         10 kB\nMemAvailable:    600 kB\n")
    monkeypatch.setattr(mx, "device_info", lambda: {"device_name": "some CPU"})
    monkeypatch.setattr(device, "MEMINFO", meminfo)
    monkeypatch.setattr(device.os, "sysconf", {"SC_PHYS_PAGES": 250, "SC_PAGE_SIZE": 4096}.__getitem__)
    assert device.memory() == device.Memory(total=1000 << 10, usable=600 << 10)
    for text in ("nonsense\n", "MemAvailable:\n", "MemAvailable: much kB\n"):
        meminfo.write_text(text)
        assert device.memory().usable == 1000 << 10
    meminfo.unlink()
    assert device.memory().usable == 1000 << 10


def test_a_host_that_says_nothing_is_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def sysconf(name: str) -> int:
        raise ValueError(name)

    monkeypatch.setattr(mx, "device_info", lambda: {})
    monkeypatch.setattr(device, "MEMINFO", tmp_path / "none")
    monkeypatch.setattr(device.os, "sysconf", sysconf)
    assert device.memory() == device.Memory(None, None)
    assert device.device_name() == "unknown device"


def test_the_limits_are_those_of_what_fits_and_come_back(metal: Callable[[int], FakeMetal]) -> None:
    fake = metal(4_000 * MB)
    with device.resident():
        assert fake.limits == (GPU_LIMIT, 3_000 * MB)
    assert fake.limits == FIRST
    assert fake.calls == [f"wired {GPU_LIMIT}", "synchronize", f"wired {FIRST_WIRED}"]


def test_the_limits_come_back_after_an_error(metal: Callable[[int], FakeMetal]) -> None:
    fake = metal(4_000 * MB)
    with pytest.raises(KeyboardInterrupt), device.resident():
        raise KeyboardInterrupt
    assert fake.limits == FIRST


def test_a_limit_that_was_set_before_comes_back(metal: Callable[[int], FakeMetal]) -> None:
    fake = metal(4_000 * MB)
    fake.wired, fake.cache = 123, 456
    with device.resident():
        pass
    assert fake.limits == (123, 456)


@pytest.mark.parametrize("active", [GPU_LIMIT, GPU_LIMIT + 1])
def test_what_does_not_fit_is_not_wired_and_leaves_room_for_a_tokens_buffers(
    metal: Callable[[int], FakeMetal], active: int
) -> None:
    fake = metal(active)
    with device.resident():
        assert fake.limits == (FIRST_WIRED, device.LEAST_BUFFERS)
    assert fake.limits == FIRST


def test_within_one_another_the_outermost_restores(metal: Callable[[int], FakeMetal]) -> None:
    fake = metal(4_000 * MB)
    with device.resident():
        with device.resident():
            pass
        assert fake.limits == (GPU_LIMIT, 3_000 * MB)
    assert fake.limits == FIRST


def test_side_by_side_the_limits_come_back_in_either_order(metal: Callable[[int], FakeMetal]) -> None:
    for last in (0, 1):
        fake = metal(4_000 * MB)
        blocks = [device.resident(), device.resident()]
        for block in blocks:
            block.__enter__()
        for block in (blocks[1 - last], blocks[last]):
            block.__exit__(None, None, None)
        assert fake.limits == FIRST


@pytest.mark.parametrize("info", [{"device_name": "some CPU"}, {"total_memory": 9, "free_memory": 9}])
def test_elsewhere_no_limit_is_touched(monkeypatch: pytest.MonkeyPatch, info: dict[str, Any]) -> None:
    monkeypatch.setattr(mx, "device_info", lambda: info)
    for name in ("set_wired_limit", "set_cache_limit", "synchronize"):
        monkeypatch.setattr(mx, name, lambda *_: pytest.fail("a limit was touched"))
    with device.resident():
        pass


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load(tiny_folder(tmp_path_factory.mktemp("model") / "m"))


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What became of each `device.resident()`."""
    seen: list[str] = []

    @contextmanager
    def resident() -> Iterator[None]:
        seen.append("raised")
        try:
            yield
        finally:
            seen.append("restored")

    monkeypatch.setattr(device, "resident", resident)
    return seen


def test_the_limits_are_raised_from_the_first_chunk_to_the_last(loaded: Any, blocks: list[str]) -> None:
    chunks = stream_generate(*loaded, "hello", max_tokens=3)
    assert blocks == []
    for _ in chunks:
        assert blocks == ["raised"]
    assert blocks == ["raised", "restored"]


def test_an_answer_that_is_left_early_restores_the_limits(loaded: Any, blocks: list[str]) -> None:
    chunks = stream_generate(*loaded, "hello", max_tokens=30)
    next(chunks)
    chunks.close()  # type: ignore[attr-defined]
    assert blocks == ["raised", "restored"]
