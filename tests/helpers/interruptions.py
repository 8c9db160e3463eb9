"""What the tests of conversions that end too soon share: a source, its whole result, and ways to stop."""

from pathlib import Path
from typing import Any

import pytest

from afmoe_mlx import convert
from afmoe_mlx.conversion import encoder, writer
from helpers.checkpoints import golden, write
from helpers.converted import contents

OPTIONS: dict[str, Any] = {"bits": 3, "group_size": 32, "shard_bytes": 20_000}


@pytest.fixture(scope="module", name="hub_layout")
def hub_layout_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in several files, a tensor an expert."""
    made = golden("afmoe-everything")
    return write(tmp_path_factory.mktemp("source"), made.config, made.tensors, shards=3)


@pytest.fixture(scope="module", name="undisturbed")
def undisturbed_contents(hub_layout: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return contents(convert(hub_layout, tmp_path_factory.mktemp("whole") / "out", **OPTIONS))


@pytest.fixture(autouse=True, name="small_steps")
def in_small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Much is written and noted in little steps, as if the model were large."""
    monkeypatch.setattr(encoder, "PIECE_BYTES", 2000)
    monkeypatch.setattr(writer, "SYNC_BYTES", 4000)
    monkeypatch.setattr(writer, "QUEUE_BYTES", 3000)


class Stop:
    """Raises `error` at the call of a number."""

    def __init__(self, at: int, error: BaseException, then: Any = lambda *_: None) -> None:
        self.left, self.error, self.then = at, error, then

    def __call__(self, *arguments: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            raise self.error
        return self.then(*arguments)


def partial_folder(target: Path) -> Path:
    return target.with_name(f".{target.name}.partial")


def interrupted(source: Path, target: Path, at: int = 60, **options: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        convert(source, target, on_progress=Stop(at, KeyboardInterrupt()), **OPTIONS | options)
    assert partial_folder(target).exists()
    assert not target.exists()
