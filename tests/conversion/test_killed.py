"""A conversion whose process was killed at any moment and that is run again gives the bytes of an undisturbed one."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from afmoe_mlx import convert
from afmoe_mlx.conversion import workspace
from afmoe_mlx.conversion.stored import SourceReader
from afmoe_mlx.errors import CheckpointError, ConversionError
from helpers.converted import config_of, contents
from helpers.interruptions import (  # noqa: F401 (fixtures)
    OPTIONS,
    hub_layout_folder,
    in_small_steps,
    interrupted,
    partial_folder,
    undisturbed_contents,
)
from helpers.tiny import tiny_folder

# A process that kills itself at the n-th call of what changes the disk; of a write, half is done.
KILLED = """
import json, os, pathlib, signal, sys
from afmoe_mlx import convert
from afmoe_mlx.calibration import Calibration
from afmoe_mlx.conversion import encoder, writer
source, target, options, left = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4])
if "calibrate" in options:
    options["calibrate"] = Calibration(text=pathlib.Path(options["calibrate"]), tokens=40)
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
    while kills < 5:
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
    """Layer after layer, more than have their hidden states kept, noted as finished only when they must be."""
    layers = ["sliding_attention", "full_attention"] * 2
    source = tiny_folder(tmp_path / "source", hidden_size=32, layer_types=layers)
    text, target, chance = tmp_path / "text.txt", tmp_path / "out", random.Random(3)
    text.write_text("The wind fell before dawn, and hello, the world was still. Who heard it? Nobody did.\n" * 3)
    options, kills = json.dumps(OPTIONS | {"calibrate": str(text)}), 0
    assert not killed(source, tmp_path / "whole", options, 10**9)  # not here, where another BLAS may round otherwise
    whole = contents(tmp_path / "whole")
    while killed(source, target, options, chance.randrange(10, 60)):
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
