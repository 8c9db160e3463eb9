"""The prefix store's files: found again by any process, private, bounded, never believed when damaged."""

import os
import stat
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afmoe_mlx import load, stream_generate
from afmoe_mlx.cache import PrefixStore, disk
from afmoe_mlx.cache.block_file import BlockFile, DamagedFileError
from afmoe_mlx.cache.blocks import Layout
from afmoe_mlx.cache.disk import trim
from afmoe_mlx.errors import InputError
from afmoe_mlx.models import CausalLM
from helpers.prefix_files import files
from helpers.stores import check, ids, run, seen
from helpers.tiny import ARCHITECTURES, tiny, tiny_folder, two_layers

SIZE = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_folder(tmp_path_factory.mktemp("model") / "m", max_position_embeddings=4096))


def store_of(model: CausalLM, directory: Path, **options: Any) -> PrefixStore:
    return PrefixStore(model, directory=directory, block_size=SIZE, **options)


def filled(model: CausalLM, directory: Path, *sequences: list[int], **options: Any) -> PrefixStore:
    store = store_of(model, directory, **options)
    for sequence in sequences or (ids(64),):
        store.insert(sequence, seen(model, sequence))
    store.flush()
    return store


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_later_store_finds_what_an_earlier_one_wrote(model_type: str, dtype: str, tmp_path: Path) -> None:
    model = two_layers(model_type, 5)
    if dtype == "bfloat16":
        model.dtype = mx.bfloat16
    filled(model, tmp_path)
    assert len(files(tmp_path)) == 8
    store = store_of(model, tmp_path)
    cache, n = store.lookup([*ids(64), 0])
    assert n == 64
    rest, expected = run(model, [0], cache), run(model, [0], seen(model, ids(64)))
    assert np.array_equal(rest, expected) or (dtype == "float32" and np.abs(rest - expected).max() < 2e-5)
    assert store.nbytes > 0


def test_another_process_finds_it_while_this_one_writes(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model", sliding_window=4)
    code = (
        "import sys; from afmoe_mlx import load; from afmoe_mlx.cache import PrefixStore\n"
        f"model, _ = load({str(folder)!r})\n"
        f"store = PrefixStore(model, directory={str(tmp_path / 'kept')!r}, block_size=8)\n"
        f"print(store.lookup({ids(65)!r})[1], store.counters['damaged'])"
    )
    model = load(folder)[0]
    store = filled(model, tmp_path / "kept")
    for seed in range(1, 20):
        store.insert(ids(64, seed), seen(model, ids(64, seed)))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["64", "0"]


def test_a_store_that_is_dropped_at_once_still_writes_all(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    code = (
        "import mlx.core as mx; from afmoe_mlx import load; from afmoe_mlx.cache import PrefixStore\n"
        f"model, _ = load({str(folder)!r}); cache = model.make_cache()\n"
        "model(mx.array([[1] * 64]), cache=cache)\n"
        f"PrefixStore(model, directory={str(tmp_path / 'kept')!r}, block_size=8).insert([1] * 64, cache)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert len(files(tmp_path / "kept")) == 8


def test_what_is_evicted_from_memory_is_found_on_disk_before_it_is_even_written(tmp_path: Path) -> None:
    model = two_layers("afmoe", 5)
    store = store_of(model, tmp_path, max_bytes=0)
    store.insert(ids(64), seen(model, ids(64)))
    assert (store.nbytes, store.counters["blocks"]) == (0, 0)
    assert check(store, [*ids(64), 0]) == 64


def test_files_are_their_owners_alone_and_tell_no_text(tmp_path: Path) -> None:
    filled(two_layers("afmoe", 5), tmp_path / "kept")
    for path in files(tmp_path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert set(path.stem) <= set("0123456789abcdef")
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "kept").stat().st_mode) == 0o700


def test_nothing_is_written_twice(tmp_path: Path) -> None:
    model = two_layers("afmoe", 5)
    first = filled(model, tmp_path)
    first.insert(ids(64), seen(model, ids(64)))
    first.flush()
    second = filled(model, tmp_path)
    assert (first.counters["written"], second.counters["written"]) == (8, 0)


def test_recent_columns_that_a_file_lacks_are_added(tmp_path: Path) -> None:
    model = two_layers("afmoe", 5)
    store = store_of(model, tmp_path)
    store.insert(ids(64), seen(model, ids(64), slack=0))
    store.insert(ids(64)[:40], seen(model, ids(64)[:40], slack=0))
    store.flush()
    assert check(store_of(model, tmp_path), [*ids(64)[:44], 0]) == 40


def test_no_other_model_reads_them(tmp_path: Path) -> None:
    filled(two_layers("afmoe", 5), tmp_path)
    other = two_layers("afmoe", 5)
    other.lm_head.weight = other.lm_head.weight + 1e-3
    store = filled(other, tmp_path)
    assert store.counters["written"] == 8
    assert len({path.parent for path in files(tmp_path)}) == 2
    assert check(store_of(other, tmp_path), [*ids(64), 0]) == 64


DAMAGES: dict[str, Any] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut in the header": lambda path: path.write_bytes(path.read_bytes()[:70]),
    "cut at the end": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "too long": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "another format": lambda path: path.write_bytes(b"PK\3\4" + os.urandom(5000)),
    "huge header": lambda path: path.write_bytes(path.read_bytes()[:57] + b"\xff" * 8 + b"{}"),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_skipped_counted_and_written_anew(damage: str, tmp_path: Path) -> None:
    model = two_layers("afmoe", 5)
    filled(model, tmp_path)
    order = {path.stat().st_mtime_ns: path for path in files(tmp_path)}
    fifth = [order[used] for used in sorted(order, reverse=True)][4]
    DAMAGES[damage](fifth)
    store = store_of(model, tmp_path)
    assert check(store, [*ids(64), 0]) == 32
    assert store.counters["damaged"] == 1
    if damage != "a folder":
        store.insert(ids(64), seen(model, ids(64)))
        store.flush()
        assert check(store_of(model, tmp_path), [*ids(64), 0]) == 64


@settings(max_examples=30, deadline=None)
@given(which=st.integers(0, 7), where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_no_flipped_bit_ever_reaches_an_answer(
    which: int, where: float, bit: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model, folder = two_layers("afmoe", 5), tmp_path_factory.mktemp("flipped")
    filled(model, folder)
    path = files(folder)[which]
    data = bytearray(path.read_bytes())
    data[int(where * len(data))] ^= 1 << bit
    path.write_bytes(data)
    store = store_of(model, folder)
    check(store, [*ids(64), 0])


def test_a_block_under_anothers_name_is_not_believed(tmp_path: Path) -> None:
    model = two_layers("afmoe", 5)
    filled(model, tmp_path, ids(64), ids(64, seed=1))
    paths = files(tmp_path)
    contents = [path.read_bytes() for path in paths]
    for path, content in zip(paths, contents[1:] + contents[:1], strict=True):
        path.write_bytes(content)
    store = store_of(model, tmp_path)
    assert check(store, [*ids(64), 0]) == 0
    assert store.counters["damaged"] == 1


def test_a_file_of_other_layers_rows_or_columns_is_not_of_this_layout(tmp_path: Path) -> None:
    layout, block = Layout(two_layers("afmoe", 5).make_cache()), SimpleNamespace(size=4)
    array = ["F32", [1, 2, 4, 8]]

    def accepts(*, layers: int = 1, rows: int = 1, columns: int = 4, arrays: int = 2) -> bool:
        described = [[[array[0], [rows, 2, columns, 8]]] * arrays] * layers
        return layout.accepts({"held": 4, "whole": described, "recent": [[array, array]]}, block)  # type: ignore[arg-type]

    assert accepts()
    assert not any((accepts(layers=0), accepts(layers=2), accepts(rows=2), accepts(columns=3), accepts(arrays=1)))


def test_a_file_that_vanishes_is_no_error(tmp_path: Path) -> None:
    model = two_layers("afmoe", 5)
    store = filled(model, tmp_path, max_bytes=0)
    for path in files(tmp_path):
        path.unlink()
    assert check(store, [*ids(64), 0]) == 0
    assert store.counters["damaged"] == 0


def test_the_disk_keeps_to_its_budget_and_the_least_recently_used_goes(tmp_path: Path) -> None:
    model = two_layers("afmoe", 5)
    nbytes = files(filled(model, tmp_path / "one").directory or tmp_path)[0].stat().st_size
    room = nbytes * 20
    store = filled(model, tmp_path / "kept", ids(64), ids(64, seed=1), max_disk_bytes=room, max_bytes=0)
    assert check(store, [*ids(64), 0]) == 64
    store.flush()
    time.sleep(0.01)
    store.insert(ids(64, seed=2), seen(model, ids(64, seed=2)))
    store.flush()
    assert sum(path.stat().st_size for path in files(tmp_path / "kept")) <= room
    found = [check(store, [*ids(64, seed=seed), 0]) for seed in range(3)]
    assert found[0] == found[2] == 64
    assert found[1] < 64  # of whose blocks the last went first
    assert found[1] == 0 or len(files(tmp_path / "kept")) == 16 + found[1] // SIZE


def test_a_budget_of_a_few_blocks_is_kept_to_with_every_block(tmp_path: Path) -> None:
    model = two_layers("afmoe", 5)
    nbytes = max(path.stat().st_size for path in files(filled(model, tmp_path / "one").directory or tmp_path))
    room, store = nbytes * 5 // 2, store_of(model, tmp_path / "kept", max_disk_bytes=nbytes * 5 // 2, max_bytes=0)
    for seed in range(4):
        sequence = ids(SIZE, seed=seed)
        store.insert(sequence, seen(model, sequence))
        store.flush()
        assert 0 < sum(path.stat().st_size for path in files(tmp_path / "kept")) <= room


def test_what_a_killed_process_left_half_written_is_removed_in_time(tmp_path: Path) -> None:
    model = two_layers("afmoe", 5)
    folder = files(filled(model, tmp_path).directory or tmp_path)[0].parent
    old, young = folder / ".0.1.partial", folder / ".0.2.partial"
    for path in (old, young):
        path.touch()
    os.utime(old, (1, 1))
    filled(model, tmp_path, ids(64, seed=1))
    assert (old.exists(), young.exists()) == (False, True)


def test_a_directory_that_cannot_be_written_is_one_warning_and_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    model = two_layers("afmoe", 5)
    store = store_of(model, tmp_path / "file" / "kept")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for seed in range(3):
            store.insert(ids(64, seed), seen(model, ids(64, seed)))
            store.flush()
    assert ["cannot be written there" in str(warning.message) for warning in caught] == [True]
    assert store.counters["failed"] == 24
    assert check(store, [*ids(64), 0]) == 64


def test_a_full_disk_is_one_warning_and_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk, "write", full)
    with pytest.warns(UserWarning, match="No space left"):
        store = filled(two_layers("afmoe", 5), tmp_path)
    assert check(store, [*ids(64), 0]) == 64


@pytest.mark.parametrize("budget", [None, 100])
def test_a_budget_that_no_block_fits_is_one_warning(
    budget: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    model = two_layers("afmoe", 5)
    with pytest.warns(UserWarning, match="a block takes .* bytes, of which it may take 100 ") as caught:
        store = filled(model, tmp_path, ids(64), ids(64, seed=1), max_disk_bytes=budget)
    assert len(caught) == 1
    assert (store.counters["written"], store.counters["failed"]) == (0, 16)


def test_much_waiting_for_a_slow_disk_is_left_for_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "MAX_PENDING", 3000)
    model = two_layers("afmoe", 5)
    store = filled(model, tmp_path)
    for _ in range(20):
        store.insert(ids(64), seen(model, ids(64)))
        store.flush()
    assert store.counters["written"] == 8


def test_clearing_a_folder_takes_what_was_written_here_alone_and_all_of_it(tmp_path: Path) -> None:
    net, ids = tiny("afmoe"), list(range(40))
    cache = net.make_cache()
    net(mx.array([ids]), cache=cache)
    store = PrefixStore(net, directory=tmp_path, block_size=8)
    store.insert(ids, cache)
    store.flush()
    (own,) = tmp_path.iterdir()
    half = own / f".{'a' * 16}.{'b' * 16}.partial"
    foreign = [tmp_path / "proj" / "data.block", own / "notes.block"]
    foreign[0].parent.mkdir()
    for path in (half, *foreign):
        path.write_text("precious")
    assert not trim(tmp_path, 10**9)
    assert half.exists()
    trim(tmp_path, 0)
    assert [path.exists() for path in foreign] == [True, True]
    assert sorted(own.iterdir()) == [foreign[1]]


def test_damaged_columns_are_written_anew(tmp_path: Path) -> None:
    net, ids = tiny("afmoe"), list(range(40))

    def run() -> int:
        store = PrefixStore(net, directory=tmp_path, block_size=8)
        cache, known = store.lookup(ids)
        net(mx.array([ids[known:]]), cache=cache)
        store.insert(ids, cache)
        store.flush()
        return known

    assert run() == 0
    for path in tmp_path.rglob("*.block"):
        content = bytearray(path.read_bytes())
        content[-4] ^= 255
        path.write_bytes(content)
    run()
    assert run() == 32


@pytest.mark.parametrize("trouble", [OSError(5, "Input/output error"), DamagedFileError("other columns")])
def test_a_file_that_cannot_be_read_stays_until_another_takes_its_place(
    trouble: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = two_layers("afmoe", 5)
    filled(model, tmp_path)
    before = {path: path.read_bytes() for path in files(tmp_path)}

    def read(*_: object) -> None:
        raise trouble

    store = store_of(model, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(BlockFile, "read", read)
        assert check(store, [*ids(64), 0]) == 0
    assert {path: path.read_bytes() for path in files(tmp_path)} == before
    store.insert(ids(64), seen(model, ids(64)))
    store.flush()
    assert store.counters["written"] > 0
    assert check(store_of(model, tmp_path), [*ids(64), 0]) == 64


def test_a_store_of_another_model_is_refused(folder: str) -> None:
    (model, tokenizer), (other, _) = load(folder), load(folder)
    with pytest.raises(InputError, match="another model"):
        stream_generate(model, tokenizer, "hello", store=PrefixStore(other))
