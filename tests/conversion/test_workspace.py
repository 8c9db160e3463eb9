"""A conversion's destination is whole or untouched, and what is there is replaced only by a whole one."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from afmoe_mlx import convert
from afmoe_mlx.checkpoint import save
from afmoe_mlx.errors import AfmoeError, CheckpointError, ConversionError
from helpers.checkpoints import write_golden
from helpers.converted import config_of, contents, source_folder  # noqa: F401 (a fixture)
from helpers.tiny import tiny_folder


def test_an_existing_destination_is_refused_unless_overwritten(source: Path, tmp_path: Path) -> None:
    first = convert(source, tmp_path / "out", bits=3)
    before = contents(first)
    with pytest.raises(CheckpointError, match=r"exists already.*--overwrite"):
        convert(source, tmp_path / "out")
    assert contents(first) == before
    convert(source, tmp_path / "out", overwrite=True)
    assert config_of(tmp_path / "out")["quantization"]["bits"] == 4
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"notes.txt": "mine"},
        {"config.json": '{"name": "a web app"}', "index.js": ""},
        {"config.json": '{"model_type": "afmoe"}', "thesis.tex": ""},
        {"config.json": "{", "model.safetensors": ""},
    ],
    ids=lambda files: "+".join(files) or "empty",
)
def test_overwriting_never_destroys_what_is_not_a_model(source: Path, tmp_path: Path, files: dict[str, str]) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    before = contents(folder)
    with pytest.raises(CheckpointError, match="not a model's folder"):
        convert(source, folder, overwrite=True)
    assert contents(folder) == before


def test_overwriting_a_file_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(CheckpointError, match="not a model's folder"):
        convert(source, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("name", [".out.partial", ".out.partial/model", ".out.partial/downloads"])
def test_nothing_is_written_through_what_stands_in_place_of_an_unfinished_conversion(
    source: Path, tmp_path: Path, name: str
) -> None:
    planted, elsewhere = tmp_path / name, tmp_path / "elsewhere"
    elsewhere.mkdir()
    planted.parent.mkdir(exist_ok=True)
    planted.symlink_to(elsewhere)
    with pytest.raises(ConversionError, match="remove it yourself"):
        convert(source, tmp_path / "out")
    assert not any(elsewhere.iterdir())
    planted.unlink()
    planted.write_text("mine")
    with pytest.raises(ConversionError, match="remove it yourself"):
        convert(source, tmp_path / "out")
    assert planted.read_text() == "mine"


def test_overwriting_through_a_link_replaces_what_it_points_to(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "real", bits=3)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    convert(source, tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert config_of(tmp_path / "real")["quantization"]["bits"] == 4
    assert {path.name for path in tmp_path.iterdir()} == {"real", "link"}


def test_overwriting_the_folder_one_stands_in(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert(source, tmp_path / "out", bits=3)
    monkeypatch.chdir(tmp_path / "out")
    convert(source, ".", overwrite=True)
    assert config_of(tmp_path / "out")["quantization"]["bits"] == 4


@pytest.mark.parametrize("place", ["above/source", "above", "weights"], ids=["itself", "above it", "its weights"])
def test_a_source_is_never_overwritten(tmp_path: Path, place: str) -> None:
    source = tiny_folder(tmp_path / "above" / "source")
    for name in ("config.json", "model.safetensors"):  # so that the folder above is a model's too
        shutil.copy(source / name, tmp_path / "above" / name)
    weights = tmp_path / "weights"  # linked to, as in the Hub's cache
    weights.mkdir()
    for name in ("config.json", "model.safetensors"):
        (source / name).rename(weights / name)
        (source / name).symlink_to(weights / name)
    before = contents(tmp_path)
    with pytest.raises(CheckpointError, match="holds the source, which would be lost") as raised:
        convert(source, tmp_path / place, overwrite=True)
    assert "\n" not in str(raised.value)
    assert contents(tmp_path) == before


def test_a_source_is_never_overwritten_by_another_spelling_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny_folder(tmp_path / "Model")
    shutil.copytree(source, tmp_path / "model")  # on a disk that tells them apart it stands for the same folder
    before = contents(tmp_path)

    def is_same(one: Path, other: Path) -> bool:
        return str(one).casefold() == str(other).casefold()

    monkeypatch.setattr(os.path, "samefile", is_same)
    with pytest.raises(CheckpointError, match="holds the source, which would be lost"):
        convert(source, tmp_path / "model", overwrite=True)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("place", ["/", "loop", "loop/out", "x" * 300])
def test_a_destination_that_makes_no_sense_is_one_line(tmp_path: Path, place: str, source: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(CheckpointError) as raised:
        convert(source, tmp_path / place, overwrite=True)
    assert "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["loop"]


def full(*_: Any, **__: Any) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


def interrupt(*_: Any, **__: Any) -> Any:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("broken", "failure", "error"),
    [
        ("os.pwrite", full, ConversionError),
        ("afmoe_mlx.conversion.stored.OpenShard.read_into", interrupt, KeyboardInterrupt),
        ("afmoe_mlx.checkpoint.files.read_header", interrupt, KeyboardInterrupt),
    ],
    ids=["disk full", "interrupted while reading", "interrupted while looking"],
)
@pytest.mark.parametrize("exists", [True, False])
def test_a_failure_at_the_start_leaves_everything_as_it_was(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str, failure: Any, error: Any, exists: bool
) -> None:
    target = tmp_path / "deep" / "out"
    if exists:
        convert(source, target, bits=3)
    before = contents(tmp_path)
    monkeypatch.setattr(broken, failure)
    with pytest.raises(error):
        convert(source, target, overwrite=exists)
    assert contents(tmp_path) == before
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_dir()) == (["deep", "out"] if exists else [])


def test_a_failure_to_rename_puts_the_old_destination_back(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = convert(source, tmp_path / "out", bits=3)
    before, rename = contents(target), Path.rename

    def fail_once(path: Path, new: Path) -> Path:
        if path.name == "model":
            raise OSError(5, "Input/output error")
        return rename(path, new)

    monkeypatch.setattr(Path, "rename", fail_once)
    with pytest.raises(CheckpointError, match="Input/output error"):
        convert(source, target, overwrite=True)
    assert contents(target) == before


def test_a_bad_source_leaves_nothing_behind(tmp_path: Path) -> None:
    source = write_golden(tmp_path / "a", "afmoe-base")
    (source / "model.safetensors").write_bytes(b"")
    with pytest.raises(AfmoeError):
        convert(source, tmp_path / "deep" / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_destination_that_cannot_be_made(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written") as raised:
        convert(source, tmp_path / "file" / "out")
    assert "\n" not in str(raised.value)
    assert save.INDEX not in str(raised.value)
