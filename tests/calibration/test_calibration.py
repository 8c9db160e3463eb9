"""What a user may choose about calibration, and the tokens that come of a text."""

from pathlib import Path
from typing import Any

import pytest

from afmoe_mlx import convert, upload
from afmoe_mlx.calibration import Calibration
from afmoe_mlx.calibration.text import batches, read_rows
from afmoe_mlx.errors import InputError
from afmoe_mlx.tokenizer import Tokenizer
from helpers.calibrated import source_folder
from helpers.converted import contents
from helpers.tiny import tiny_folder


def test_a_text_is_chosen_by_its_path_and_the_packages_by_true(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = source_folder(tmp_path, "afmoe")
    monkeypatch.setenv("HOME", str(text.parent))
    options = {"group_size": 32}
    for given in (text, str(text), f"~/{text.name}"):
        assert Calibration.of(given) == Calibration(text=text)
    expected = contents(convert(source, tmp_path / "expected", calibrate=Calibration(text=str(text)), **options))
    assert contents(convert(source, tmp_path / "given", calibrate=f"~/{text.name}", **options)) == expected
    plain = contents(convert(source, tmp_path / "plain", **options))
    assert contents(convert(source, tmp_path / "none", calibrate=False, **options)) == plain
    assert Calibration.of(True) == Calibration()


@pytest.mark.parametrize(("given", "words"), [("mine.txt", "of mine.txt"), (True, "of the built-in text")])
def test_an_uploads_card_says_what_convert_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: Any, words: str
) -> None:
    monkeypatch.setattr("afmoe_mlx.conversion.publication._send", lambda folder, repo: repo)
    folder = convert(source_folder(tmp_path, "afmoe"), tmp_path / "out", group_size=32)
    upload(folder, "you/tiny", calibrate=given)
    assert f"8,192 tokens {words}" in (folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("given", [3, 1, ["notes.txt"], b"notes.txt", Calibration])
def test_what_is_no_calibration_is_refused_in_a_line(tmp_path: Path, given: Any) -> None:
    with pytest.raises(InputError, match="expected a Calibration, a text file's path, or True") as caught:
        convert(source_folder(tmp_path, "afmoe"), tmp_path / "out", calibrate=given)
    with pytest.raises(InputError, match="expected a Calibration"):
        upload(tmp_path, "you/tiny", calibrate=given)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / ".out.partial").exists()


def test_a_text_that_is_not_there_is_named(tmp_path: Path) -> None:
    chosen = Calibration(text=tmp_path / "missing.txt")
    with pytest.raises(InputError, match=r"missing\.txt"):
        convert(source_folder(tmp_path, "afmoe"), tmp_path / "out", calibrate=chosen)


@pytest.fixture(scope="module", name="tokenizer")
def tokenizer_of_folder(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_folder(tiny_folder(tmp_path_factory.mktemp("tokenizer") / "model"))


@pytest.mark.parametrize("count", [1, 50, 700])
def test_as_many_tokens_are_used_as_asked_for(tokenizer: Tokenizer, text: Path, count: int) -> None:
    rows = read_rows(Calibration(text=text, tokens=count), tokenizer)
    assert sum(map(len, rows)) == count
    assert rows == read_rows(Calibration(text=text, tokens=count), tokenizer)
    made = batches(rows)
    assert sorted(row for batch in made for row in batch) == sorted(rows)
    assert all(len({len(row) for row in batch}) == 1 for batch in made)


def test_the_text_of_the_package_is_long_and_mixed_enough(tokenizer: Tokenizer) -> None:
    rows = read_rows(Calibration(tokens=10**9), tokenizer)
    text = tokenizer.decode([token for row in rows for token in row])
    assert 30_000 < len(text.encode()) < 70_000
    assert all(mark in text for mark in ("def ", "<|im_start|>", "SELECT", "日", "ß", "é", "и", "- ", "| ", "∑"))
