"""A conversion that was stopped at any moment and run again gives the bytes of an undisturbed one."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from checkpoints import golden, write
from converted import config_of, contents
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_folder

from afmoe_mlx import convert
from afmoe_mlx.conversion import encoder, workspace, writer
from afmoe_mlx.conversion.stored import SourceReader
from afmoe_mlx.conversion.workspace import is_unfinished
from afmoe_mlx.errors import AfmoeError, CheckpointError, ConversionError

OPTIONS: dict[str, Any] = {"bits": 3, "group_size": 32, "shard_bytes": 20_000}


@pytest.fixture(scope="module")
def hub_layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in several files, a tensor an expert."""
    made = golden("afmoe-everything")
    return write(tmp_path_factory.mktemp("source"), made.config, made.tensors, shards=3)


@pytest.fixture(scope="module")
def undisturbed(hub_layout: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return contents(convert(hub_layout, tmp_path_factory.mktemp("whole") / "out", **OPTIONS))


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
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


# A process that kills itself at the n-th call of what changes the disk; of a write, half is done.
KILLED = """
import json, os, pathlib, signal, sys
from afmoe_mlx import convert
from afmoe_mlx.calibration import Calibration
from afmoe_mlx.conversion import encoder, writer
source, target, options, left = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4])
if "calibrate" in options:
    options["calibrate"] = Calibration(text=pathlib.Path(options["calibrate"]), tokens=120)
else:
    encoder.PIECE_BYTES, writer.SYNC_BYTES = 8000, 1
def counted(call, half=None):
    def wrapper(*arguments):
        global left
        left -= 1
        if left < 0:
            if half is not None:
                half(*arguments)
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments)
    return wrapper
pwrite = os.pwrite
os.pwrite = counted(pwrite, lambda file, data, place: pwrite(file, data[: len(data) // 2], place))
os.fsync, os.ftruncate = counted(os.fsync), counted(os.ftruncate)
pathlib.Path.rename, pathlib.Path.replace = counted(pathlib.Path.rename), counted(pathlib.Path.replace)
convert(source, target, **options)
"""


def killed(source: Path, target: Path, options: str, after: int) -> bool:
    """Whether a conversion was killed before it ended well."""
    command = [sys.executable, "-c", KILLED, str(source), str(target), options, str(after)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode != 0


@pytest.mark.parametrize("exists", [False, True], ids=["new", "replaced"])
def test_killed_at_random_points_the_result_is_that_of_an_undisturbed_run(
    hub_layout: Path, undisturbed: dict[str, bytes], tmp_path: Path, exists: bool
) -> None:
    target, chance, kills = tmp_path / "out", random.Random(6 + exists), 0
    old = contents(convert(hub_layout, target, bits=4, group_size=32)) if exists else None
    options = json.dumps(OPTIONS | {"overwrite": exists})
    while kills < 8:
        if killed(hub_layout, target, options, chance.randrange(150)):
            kills += 1
            found = contents(target) if target.exists() else None
            kept = partial_folder(target) / "old"
            assert found in (old, undisturbed) or (exists and contents(kept) == old)
            continue
        assert contents(target) == undisturbed
        if not exists:
            shutil.rmtree(target)
    convert(hub_layout, target, overwrite=True, **OPTIONS)
    assert contents(target) == undisturbed
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_calibrated_conversion_killed_at_random_points_continues(tmp_path: Path) -> None:
    """Layer after layer, many more than have their hidden states kept, noted as finished only when they must be."""
    layers = ["sliding_attention", "full_attention"] * 4
    source = tiny_folder(tmp_path / "source", hidden_size=64, num_hidden_layers=8, layer_types=layers)
    text, target, chance = tmp_path / "text.txt", tmp_path / "out", random.Random(3)
    text.write_text("The wind fell before dawn, and hello, the world was still. Who heard it? Nobody did.\n" * 3)
    options, kills = json.dumps(OPTIONS | {"calibrate": str(text)}), 0
    assert not killed(source, tmp_path / "whole", options, 10**9)  # not here, where another BLAS may round otherwise
    whole = contents(tmp_path / "whole")
    while killed(source, target, options, chance.randrange(10, 100)):
        kills += 1
        assert not target.exists() or contents(target) == whole
    assert contents(target) == whole
    assert kills > 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source", "text.txt", "whole"]


def test_killed_between_the_two_renames_the_old_model_is_not_lost(
    hub_layout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = convert(hub_layout, tmp_path / "out", bits=4, group_size=32)
    before = contents(target)
    interrupted_twice = tmp_path / "other"
    interrupted(hub_layout, interrupted_twice)
    partial_folder(interrupted_twice).rename(partial_folder(target))
    target.rename(partial_folder(target) / "old")
    with pytest.raises(ConversionError, match="differs in its options"):
        convert(hub_layout, target, bits=8, group_size=32)
    assert contents(target) == before


def killed_once_published(source: Path, target: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    """A conversion that ends as if its process were killed right after its result got its name."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(workspace, "sync_folder", lambda path: None if path.name == "model" else stop())
        with pytest.raises(KeyboardInterrupt):
            convert(source, target, **OPTIONS | options)
    assert target.exists()
    assert (partial_folder(target) / "journal.jsonl").exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_killed_once_the_result_has_its_name_the_next_run_clears_up(
    hub_layout: Path, undisturbed: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    target = tmp_path / "out"
    if overwrite:
        convert(hub_layout, target, bits=4, group_size=32)
    killed_once_published(hub_layout, target, monkeypatch, overwrite=overwrite)
    monkeypatch.setattr(SourceReader, "read", lambda *_: pytest.fail("converted again"))
    assert convert(hub_layout, target, **OPTIONS, overwrite=overwrite) == target
    assert contents(target) == undisturbed
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("case", ["other options", "damaged", "shortened", "a file", "another journal"])
def test_what_is_not_the_killed_runs_result_exists_already_and_stays(
    hub_layout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    target = tmp_path / "out"
    killed_once_published(hub_layout, target, monkeypatch)
    path = sorted(target.glob("*.safetensors"))[-1]
    if case == "damaged":
        path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))
    elif case == "shortened":
        os.truncate(path, path.stat().st_size - 1)
    elif case == "a file":
        shutil.rmtree(target)
        target.write_text("mine")
    elif case == "another journal":
        (partial_folder(target) / "journal.jsonl").write_bytes(b"\0")
    changes = {"bits": 4} if case == "other options" else {}
    before = target.read_bytes() if target.is_file() else contents(target)
    with pytest.raises(CheckpointError, match="exists already") as raised:
        convert(hub_layout, target, **OPTIONS | changes)
    assert "\n" not in str(raised.value)
    assert before == (target.read_bytes() if target.is_file() else contents(target))


def test_killed_once_it_replaced_a_model_another_conversion_replaces_it_in_turn(
    hub_layout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = convert(hub_layout, tmp_path / "out", bits=4, group_size=32)
    killed_once_published(hub_layout, target, monkeypatch, overwrite=True)
    convert(hub_layout, target, bits=8, group_size=32, overwrite=True)
    assert config_of(target)["quantization"]["bits"] == 8
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


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
