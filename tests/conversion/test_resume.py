"""A conversion that was stopped at any moment and run again gives the bytes of an undisturbed one."""

import errno
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afmoe_mlx import convert
from afmoe_mlx.conversion import encoder
from afmoe_mlx.conversion.stored import SourceReader
from afmoe_mlx.conversion.workspace import is_unfinished
from afmoe_mlx.errors import AfmoeError, ConversionError
from helpers.converted import config_of, contents
from helpers.interruptions import (  # noqa: F401 (fixtures)
    OPTIONS,
    Stop,
    hub_layout_folder,
    in_small_steps,
    interrupted,
    partial_folder,
    undisturbed_contents,
)
from helpers.tiny import tiny_folder


@settings(max_examples=10, deadline=None)
@given(stops=st.lists(st.integers(0, 150), min_size=1, max_size=3))
def test_interrupted_anywhere_and_run_again_the_bytes_are_the_same(
    hub_layout: Path, undisturbed: dict[str, bytes], stops: list[int]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "out"
        for stop in stops:
            try:
                convert(hub_layout, target, on_progress=Stop(stop, KeyboardInterrupt()), **OPTIONS)
            except KeyboardInterrupt:
                assert not target.exists()
            else:
                break
        if not target.exists():
            convert(hub_layout, target, **OPTIONS)
        assert contents(target) == undisturbed
        assert [path.name for path in Path(folder).iterdir()] == ["out"]


def test_what_is_finished_is_not_read_again(hub_layout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(hub_layout, tmp_path / "out", at=90)
    read, names = SourceReader.read, []

    def noted(reader: SourceReader, name: str, rows: slice | None = None) -> Any:
        names.append(name)
        return read(reader, name, rows)

    monkeypatch.setattr(SourceReader, "read", noted)
    convert(hub_layout, tmp_path / "out", **OPTIONS)
    assert names
    assert not any(name.startswith(("model.embed_tokens", "model.layers.0.")) for name in names)


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_damaged_files_of_an_unfinished_conversion_are_made_again(
    hub_layout: Path, undisturbed: dict[str, bytes], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "out"
        interrupted(hub_layout, target)
        files = sorted(path for path in partial_folder(target).rglob("*") if path.is_file() and path.stat().st_size)
        path = data.draw(st.sampled_from(files), label="file")
        old = path.read_bytes()
        place = data.draw(st.integers(0, len(old) - 1), label="byte")
        new = data.draw(
            st.sampled_from([old[:place], old[:place] + bytes([old[place] ^ 1]) + old[place + 1 :], b""]), label="new"
        )
        path.write_bytes(new)
        try:
            convert(hub_layout, target, **OPTIONS)
        except ConversionError:
            assert path.name == "journal.jsonl"  # its first line is another's now
            convert(hub_layout, target, overwrite=True, **OPTIONS)
        assert contents(target) == undisturbed


def test_an_error_of_the_encoder_keeps_what_is_done(
    hub_layout: Path, undisturbed: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when there is no room for a calibration's hidden states."""
    target, made = tmp_path / "out", encoder.PlainEncoder.encode

    def failing(self: Any, index: int | None, weights: Any) -> Any:
        if index == 1:
            raise ConversionError("no room")
        return made(self, index, weights)

    with monkeypatch.context() as patch:
        patch.setattr(encoder.PlainEncoder, "encode", failing)
        with pytest.raises(ConversionError, match="no room"):
            convert(hub_layout, target, **OPTIONS)
    assert is_unfinished(target)
    convert(hub_layout, target, **OPTIONS)
    assert contents(target) == undisturbed


@pytest.mark.parametrize("journal", [None, b"", b"\0" * 200])
def test_what_lies_there_without_its_journal_does_not_get_into_the_model(
    hub_layout: Path, undisturbed: dict[str, bytes], tmp_path: Path, journal: bytes | None
) -> None:
    target = tmp_path / "out"
    interrupted(hub_layout, target, shard_bytes=10_000)  # more files, of other names
    (partial_folder(target) / "calibration").mkdir()
    (partial_folder(target) / "calibration" / "layer-00000.safetensors").write_bytes(b"of another text")
    path = partial_folder(target) / "journal.jsonl"
    path.unlink() if journal is None else path.write_bytes(journal)
    interrupted(hub_layout, target)
    assert not (partial_folder(target) / "calibration").exists()
    assert contents(convert(hub_layout, target, **OPTIONS)) == undisturbed


def test_every_byte_is_safe_on_disk_before_the_model_has_its_name(
    hub_layout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, fsync = tmp_path / "out", os.fsync
    safe: dict[int, int] = {}

    def noted(file: int) -> None:
        fsync(file)
        if not target.exists():
            safe[os.fstat(file).st_ino] = os.fstat(file).st_mtime_ns

    monkeypatch.setattr(os, "fsync", noted)
    convert(hub_layout, target, **OPTIONS)
    assert {path.name for path in target.rglob("*") if safe.get(path.stat().st_ino) != path.stat().st_mtime_ns} == set()


@pytest.mark.parametrize(
    ("changes", "what"),
    [({"bits": 4}, "options"), ({"dtype": "bfloat16"}, "options"), ({"shard_bytes": 10_000}, "options")],
    ids=["bits", "dtype", "shards"],
)
def test_another_conversion_to_the_same_place_is_refused_and_harms_nothing(
    hub_layout: Path, undisturbed: dict[str, bytes], tmp_path: Path, changes: dict[str, Any], what: str
) -> None:
    target = tmp_path / "out"
    interrupted(hub_layout, target)
    with pytest.raises(ConversionError, match=f"differs in its {what}: run that command again") as raised:
        convert(hub_layout, target, **OPTIONS | changes)
    assert "\n" not in str(raised.value)
    convert(hub_layout, target, **OPTIONS)
    assert contents(target) == undisturbed


def test_overwrite_gives_up_another_conversion(hub_layout: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    interrupted(hub_layout, target)
    convert(hub_layout, target, bits=4, group_size=32, overwrite=True)
    assert config_of(target)["quantization"]["bits"] == 4
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_wrong_argument_keeps_what_is_unfinished(hub_layout: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    interrupted(hub_layout, target)
    before = contents(tmp_path)
    for source, options in ((tmp_path / "nowhere", {}), (hub_layout, {"dequantize": True})):
        with pytest.raises(AfmoeError):
            convert(source, target, **options)
    assert contents(tmp_path) == before


def test_a_source_that_changes_between_runs_is_told_apart(tmp_path: Path) -> None:
    source = tiny_folder(tmp_path / "a", hidden_size=64)
    target = tmp_path / "out"
    interrupted(source, target, at=150)
    os.utime(source / "model.safetensors", ns=(1, 1))
    with pytest.raises(ConversionError, match="differs in its source"):
        convert(source, target, **OPTIONS)


@pytest.mark.parametrize("change", ["touched", "shortened", "removed"])
def test_a_source_that_changes_underneath_is_an_error_and_nothing_appears(tmp_path: Path, change: str) -> None:
    source = tiny_folder(tmp_path / "a", hidden_size=64)
    path, left = source / "model.safetensors", [20]

    def disturb(_: Any) -> None:
        left[0] -= 1
        if left[0] == 0 and change == "touched":
            os.utime(path, ns=(1, 1))
        elif left[0] == 0 and change == "shortened":
            os.truncate(path, path.stat().st_size // 4)
        elif left[0] == 0:
            path.unlink()

    with pytest.raises(ConversionError, match="changed while it was converted") as raised:
        convert(source, tmp_path / "out", on_progress=disturb, **OPTIONS)
    assert "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("call", ["pwrite", "fsync"])
def test_a_full_disk_is_told_in_a_line_and_what_is_done_is_kept(
    hub_layout: Path, undisturbed: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    target = tmp_path / "out"
    journal, fsync = partial_folder(target) / "journal.jsonl", os.fsync
    full = OSError(errno.ENOSPC, "No space left on device")

    def late(file: int) -> None:
        if journal.exists() and journal.read_text().count("\n") > 2:
            raise full
        fsync(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, Stop(40, full, os.pwrite) if call == "pwrite" else late)
        with pytest.raises(ConversionError, match=r"disk is full; .* are kept in .*: free space and run the same") as e:
            convert(hub_layout, target, **OPTIONS)
    assert "\n" not in str(e.value)
    assert not target.exists()
    assert journal.read_text().count("\n") > 2
    convert(hub_layout, target, **OPTIONS)
    assert contents(target) == undisturbed


def test_a_disk_without_room_is_told_before_anything_is_written(
    hub_layout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(ConversionError, match="are free, expected"):
        convert(hub_layout, tmp_path / "out", **OPTIONS)
    assert not list(tmp_path.iterdir())


def test_two_conversions_to_one_place_at_once_are_refused(
    hub_layout: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    refused = []

    def second(_: Any) -> None:
        if not refused:
            with pytest.raises(ConversionError, match="another process is converting to this place") as raised:
                convert(hub_layout, tmp_path / "out", **OPTIONS)
            refused.append(str(raised.value))

    assert contents(convert(hub_layout, tmp_path / "out", on_progress=second, **OPTIONS)) == undisturbed
    assert "\n" not in refused[0]


def test_a_destination_that_appears_meanwhile_is_not_replaced(hub_layout: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"

    def appear(_: Any) -> None:
        target.mkdir(exist_ok=True)

    with pytest.raises(AfmoeError, match="exists already"):
        convert(hub_layout, target, on_progress=appear, **OPTIONS)
    assert not list(target.iterdir())


def test_an_interrupted_command_says_how_to_go_on(hub_layout: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    command = [
        sys.executable,
        "-c",
        INTERRUPTED,
        "convert",
        "-q",
        "--hf-path",
        str(hub_layout),
        "--mlx-path",
        str(target),
    ]
    done = subprocess.run([*command, "--q-group-size", "32"], capture_output=True, text=True)
    assert done.returncode == 130, done.stderr
    assert done.stderr == "Interrupted. What is done is kept: run the same command again to continue.\n"
    assert is_unfinished(target)


INTERRUPTED = """
from afmoe_mlx.checkpoint import save
from afmoe_mlx.conversion import pipeline
def stop(*_):
    raise KeyboardInterrupt
pipeline.write_json = stop
from afmoe_mlx.cli import main
main()
"""


def test_ctrl_c_is_heard_with_the_piece_under_way(
    hub_layout: Path, undisturbed: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, evaluate = [], mx.eval

    def interrupted_at_the_fifth(*arrays: Any) -> None:
        begun.append(arrays)
        if len(begun) == 5:
            os.kill(os.getpid(), signal.SIGINT)
        evaluate(*arrays)

    with monkeypatch.context() as patch:
        patch.setattr(mx, "eval", interrupted_at_the_fifth)
        with pytest.raises(KeyboardInterrupt):
            convert(hub_layout, tmp_path / "out", **OPTIONS)
    assert len(begun) == 5
    assert contents(convert(hub_layout, tmp_path / "out", **OPTIONS)) == undisturbed
