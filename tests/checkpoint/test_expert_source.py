"""Experts come from files of every layout, and from the model's own files alone: what happens to these is one line."""

import errno
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from afmoe_mlx import load_model
from afmoe_mlx.cache import Cache
from afmoe_mlx.checkpoint.expert_source import WatchedFile
from afmoe_mlx.errors import CheckpointError, InputError
from afmoe_mlx.footprint import fit_check
from afmoe_mlx.models import CausalLM
from afmoe_mlx.models.pool import _Part
from helpers import foreign
from helpers.checkpoints import golden, packed, stacked, write
from helpers.experts import streamed, wide_folder
from helpers.tiny import tokens

LAYOUTS: dict[str, Any] = {"per_expert": None, "packed": packed, "stacked": stacked}


@pytest.mark.parametrize("name", ["afmoe-base", "lfm2_moe-base"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shards", [1, 3])
def test_every_layout_is_read_by_the_expert(tmp_path: Path, name: str, layout: str, shards: int) -> None:
    made = golden(name)
    write(tmp_path, made.config, made.tensors, layout=LAYOUTS[layout], shards=shards)
    ids = mx.array(made.arrays["ids"])
    assert mx.array_equal(streamed(tmp_path, 2)(ids), load_model(tmp_path)[0](ids)).item()


@pytest.mark.parametrize(("dtype", "is_cast"), [(mx.float32, {False}), (mx.bfloat16, {True, False})])
def test_scales_in_the_dtype_of_the_computation_are_read_in_place(
    tmp_path: Path, dtype: mx.Dtype, is_cast: Any
) -> None:
    model = streamed(wide_folder(tmp_path / "model", "afmoe", bits=4, group_size=32, dtype=dtype), 2)
    parts: list[_Part] = model.layers[1].mlp.experts._pool._parts
    assert {part.unread() is not None for part in parts} == is_cast
    assert model.layers[1].mlp.experts._pool._source.expert_bytes == sum(
        part.size if part.unread() is None else part.size // 2 for part in parts
    )


def test_experts_of_another_quantizer_are_refused_with_what_to_do(tmp_path: Path) -> None:
    foreign.write_golden(tmp_path, "w4a16")
    with pytest.raises(CheckpointError, match="convert the model first"):
        streamed(tmp_path, 2)
    check = fit_check("it", experts_in_memory=1 << 20)  # before a download
    with pytest.raises(InputError, match="convert it first"):
        load_model(tmp_path, check=check)


@pytest.fixture
def talk(tmp_path: Path) -> "Talk":
    return Talk(wide_folder(tmp_path / "model", "afmoe", bits=4, group_size=32))


class Talk:
    """A model that reads its experts in the midst of a conversation, and what it would say undisturbed."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "model.safetensors"
        self.model: CausalLM = streamed(folder, 2)
        self.ids = tokens(1, 20)
        plain = load_model(folder)[0]
        cache = plain.make_cache()
        plain(self.ids[:, :12], cache=cache)
        self.expected = [plain(self.ids[:, i : i + 1], cache=cache) for i in range(12, 20)]
        self.cache: Cache = self.model.make_cache()
        self.model(self.ids[:, :12], cache=self.cache)
        self.done = 0

    def go_on(self) -> None:
        """The steps that are missing have the bits they should."""
        for i in range(12 + self.done, 20):
            assert self.cache.offset == i
            logits = self.model(self.ids[:, i : i + 1], cache=self.cache)
            assert mx.array_equal(logits, self.expected[i - 12]).item()
            self.done += 1

    def fail(self) -> str:
        """Go on until a step fails; its one line."""
        with pytest.raises(CheckpointError) as raised:
            self.go_on()
        assert self.cache.offset == 12 + self.done
        line = str(raised.value)
        assert "\n" not in line
        assert str(self.path) in line
        return line


def other_weights(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-2000:] = bytes(2000)
    path.with_suffix(".new").write_bytes(data)
    path.with_suffix(".new").replace(path)


def longer(path: Path) -> None:
    with path.open("ab") as file:
        file.write(bytes(10))


HAPPENINGS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "replaced": (other_weights, "its weights are others"),
    "truncated": (lambda path: os.truncate(path, path.stat().st_size - 5000), "bytes, expected"),
    "longer": (longer, "bytes, expected"),
    "gone": (lambda path: path.unlink(), "No such file"),
}


@pytest.mark.parametrize("name", HAPPENINGS)
def test_a_file_that_changes_ends_the_step_until_it_is_back(talk: Talk, name: str) -> None:
    happen, expected = HAPPENINGS[name]
    kept = shutil.copyfile(talk.path, talk.path.with_suffix(".kept"))
    happen(talk.path)
    assert expected in talk.fail()
    assert expected in talk.fail()
    shutil.copyfile(kept, talk.path)  # with another time
    talk.go_on()


def test_a_file_that_is_touched_or_copied_is_the_same_file(talk: Talk) -> None:
    shutil.copyfile(talk.path, talk.path.with_suffix(".new"))
    talk.path.with_suffix(".new").replace(talk.path)
    talk.go_on()


def fails(*_: Any) -> int:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.parametrize(("read", "expected"), [(fails, "Input/output error"), (lambda *_: 0, "ends before byte")])
def test_a_disk_that_fails_ends_the_step_until_it_reads_again(
    talk: Talk, monkeypatch: pytest.MonkeyPatch, read: Any, expected: str
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(os, "preadv", read)
        assert expected in talk.fail()
    talk.go_on()


def test_reads_that_come_in_pieces_are_put_together(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, views, offset: whole(fd, [views[0][:100]], offset))
    talk.go_on()


def test_a_read_that_is_interrupted_as_it_begins_is_waited_for(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even one that the executor has while its caller does not know yet: it would write over later experts."""
    expected = talk.model(mx.array([[0]]))
    mx.eval(expected)
    submit, read = ThreadPoolExecutor.submit, WatchedFile.read
    is_first = [True]

    def interrupted(*args: Any) -> None:
        monkeypatch.setattr(ThreadPoolExecutor, "submit", submit)
        submit(*args)
        raise KeyboardInterrupt

    def first_late(*args: Any) -> None:
        if is_first:
            is_first.clear()
            time.sleep(0.03)
        read(*args)

    monkeypatch.setattr(ThreadPoolExecutor, "submit", interrupted)
    monkeypatch.setattr(WatchedFile, "read", first_late)
    with pytest.raises(KeyboardInterrupt):
        talk.model(mx.array([[1]]))
    for _ in range(2):  # again with what is in memory by then
        assert mx.array_equal(talk.model(mx.array([[0]])), expected).item()
        time.sleep(0.06)
