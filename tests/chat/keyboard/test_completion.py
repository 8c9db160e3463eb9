"""What Tab offers."""

from pathlib import Path

import pytest

from afmoe_mlx.chat.keyboard import completion
from afmoe_mlx.chat.keyboard.completion import Candidate


def test_files_are_offered_by_name_with_control_characters_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("report.md", "report.json", "re\x1b[31m.md", "re\nport.md", ".hidden"):
        Path(name).write_text("")
    Path("results").mkdir()
    assert [(c.text, c.replaced, c.shown) for c in completion.files("re")] == [
        ("re\nport.md", 2, "re\\nport.md"),
        ("re\x1b[31m.md", 2, "re\\x1b[31m.md"),
        ("report.json", 2, "report.json"),
        ("report.md", 2, "report.md"),
        ("results/", 2, "results/"),
    ]
    assert [c.text for c in completion.files("rep", (".md",))] == ["report.md"]
    assert [c.text for c in completion.files("~/.h")] == [".hidden"]
    assert list(completion.files("nowhere/")) == list(completion.files("~nobody-of-this-name/")) == []


def test_models_are_offered_by_short_name_and_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completion, "_downloaded", lambda: ["someone/Trinity-\x07"])
    assert Candidate("trinity-nano", 3, "trinity-nano", "6B, 1B active") in list(completion.models("tri"))
    assert [c.shown for c in completion.models("SOME")] == ["someone/Trinity-\\x07"]
    (tmp_path / "my-model").mkdir()
    (tmp_path / "file").write_text("")
    assert [c.text for c in completion.models(f"{tmp_path}/")] == ["my-model/"]
