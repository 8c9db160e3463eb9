"""A source in a folder is read where it is, and noticed when it changes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from afmoe_mlx.errors import ConversionError
from helpers.shards import NAMES, SHARDS, local


def test_a_folder_is_read_where_it_is(tmp_path: Path) -> None:
    source = local(tmp_path / "model")
    source.expect(NAMES)
    assert {name: source.file(name).read_bytes() for name in NAMES} == SHARDS
    source.done(NAMES[0])
    source.close()
    assert (tmp_path / "model" / NAMES[0]).exists()
    assert source.bytes_to_fetch(NAMES) == 0
    source.check_unchanged()


@pytest.mark.parametrize("change", ["config", "time", "size", "gone"])
def test_a_folder_that_changes_is_noticed(tmp_path: Path, change: str) -> None:
    source = local(tmp_path / "model")
    path = tmp_path / "model" / NAMES[0]
    match change:
        case "config":
            (tmp_path / "model" / "config.json").write_text("{}")
        case "time":
            os.utime(path, ns=(0, 0))
        case "size":
            path.write_bytes(b"x")
        case "gone":
            path.unlink()
    with pytest.raises(ConversionError, match="changed while"):
        source.check_unchanged()
