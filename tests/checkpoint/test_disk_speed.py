"""A disk's speed is that of reading a file, and a small file says nothing of it."""

from pathlib import Path

from afmoe_mlx.checkpoint.disk_speed import LEAST, read_speed


def test_a_large_file_tells_the_speed_of_its_disk(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    with path.open("wb") as file:
        file.truncate(LEAST)
    speed = read_speed(path)
    assert speed is not None
    assert speed > 0


def test_a_small_file_tells_nothing(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(bytes(100))
    assert read_speed(path) is None
