"""What `generate` keeps of prompts: in a folder for all, or in a file for one conversation."""

import json
from pathlib import Path
from typing import Any

import pytest

from afmoe_mlx import generate, load
from afmoe_mlx.cache import default_directory, load_cache
from afmoe_mlx.command_line.prompt_cache import disk_directory
from afmoe_mlx.errors import InputError
from helpers.command_line import invoke
from helpers.prefix_files import files
from helpers.tiny import tiny_folder

LONG = "hello to the world " * 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_folder(tmp_path_factory.mktemp("model") / "m", max_position_embeddings=4096))


def command(*arguments: str, code: int = 0) -> Any:
    result = invoke(list(arguments))
    assert result.exit_code == code, result.output
    return result


def answered(folder: str, prompt: str, *more: str) -> dict[str, Any]:
    return json.loads(command("generate", "--model", folder, "-p", prompt, "-m", "8", "--json", *more).stdout)


def test_generate_reads_of_a_prompt_only_what_no_run_before_has_read(folder: str, tmp_path: Path) -> None:
    kept = ("--prompt-cache-dir", str(tmp_path / "kept"))
    plain = answered(folder, LONG)
    first, second = answered(folder, LONG, *kept), answered(folder, LONG, *kept)
    assert first["text"] == second["text"] == plain["text"]
    assert first["cached_tokens"] == 0
    assert second["cached_tokens"] == (second["prompt_tokens"] - 1) // 256 * 256 > 0
    answered(folder, LONG, "--prompt-cache-dir", str(tmp_path / "no"), "--no-disk-cache")
    assert not (tmp_path / "no").exists()


def test_an_empty_name_of_a_folder_is_refused() -> None:
    with pytest.raises(InputError, match="--prompt-cache-dir is empty"):
        disk_directory("", wanted=None)


def test_generate_keeps_prompts_in_the_default_folder_when_asked(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_directory() == tmp_path / "afmoe-mlx" / "prefixes"
    answered(folder, LONG)
    assert files(tmp_path) == []
    answered(folder, LONG, "--disk-cache")
    shown = json.loads(command("cache", "--json").stdout)
    found = files(default_directory())
    assert (shown["files"], shown["bytes"]) == (len(found), sum(path.stat().st_size for path in found))
    assert [model["files"] for model in shown["models"]] == [len(found)]
    command("cache", "trim", "--max-bytes", str(shown["bytes"] - 1))
    assert len(files(tmp_path)) == len(found) - 1
    (tmp_path / "afmoe-mlx" / "prefixes" / "mine.txt").touch()
    command("cache", "clear")
    assert [path.name for path in files(tmp_path)] == ["mine.txt"]
    assert "0 files" in command("cache").stdout


def test_a_saved_prompt_is_continued_and_left_as_it_is(folder: str, tmp_path: Path) -> None:
    path = tmp_path / "saved"
    first = answered(folder, "hello", "--prompt-cache-file", str(path), "--system-prompt", "the world")
    content = path.read_bytes()
    second = answered(folder, "the", "--prompt-cache-file", str(path))
    assert path.read_bytes() == content
    model, tokenizer = load(folder)
    messages = [{"role": "system", "content": "the world"}, {"role": "user", "content": "hello"}]
    messages += [{"role": "assistant", "content": first["text"]}, {"role": "user", "content": "the"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    assert second["text"] == generate(model, tokenizer, prompt, max_tokens=8)
    assert second["cached_tokens"] > 0


def test_a_saved_prompt_is_continued_with_the_system_prompt_it_began_with_alone(folder: str, tmp_path: Path) -> None:
    kept = ("--prompt-cache-file", str(tmp_path / "saved"))
    answered(folder, "hello", *kept, "--system-prompt", "the world")
    again = answered(folder, "the", *kept, "--system-prompt", "the world")
    assert again["cached_tokens"] > 0
    assert again["text"] == answered(folder, "the", *kept)["text"]
    error = command("generate", "--model", folder, "-p", "the", *kept, "--system-prompt", "hello", code=1).stderr
    assert "has begun with another one: leave it out" in error


def test_a_saved_plain_text_is_continued(folder: str, tmp_path: Path) -> None:
    plain = ("--ignore-chat-template", "--prompt-cache-file", str(tmp_path / "saved"))
    answered(folder, "hello to", *plain)
    model, tokenizer = load(folder)
    saved = load_cache(tmp_path / "saved", model)
    prompt = [*saved.tokens, *tokenizer.encode("the world", add_special_tokens=False)]
    assert answered(folder, "the world", *plain)["text"] == generate(model, tokenizer, prompt, max_tokens=8)


@pytest.mark.parametrize("what", ["another model", "no cache", "plain text", "begun without", "no folder"])
def test_a_saved_prompt_that_cannot_be_continued_is_refused_in_a_line(what: str, folder: str, tmp_path: Path) -> None:
    path, more = tmp_path / "saved", []
    if what == "no cache":
        path.write_text("text")
    elif what == "no folder":
        path = tmp_path / "none" / "saved"
    elif what == "plain text":
        answered(folder, "hello", "--ignore-chat-template", "--prompt-cache-file", str(path))
    else:
        answered(folder, "hello", "--prompt-cache-file", str(path))
    if what == "another model":
        folder = str(tiny_folder(tmp_path / "other", sliding_window=7))
    if what == "begun without":
        more = ["--system-prompt", "x"]
    result = command("generate", "--model", folder, "-p", "x", "--prompt-cache-file", str(path), *more, code=1)
    expected = {"no cache": "damaged or something else", "no folder": "no folder"}.get(what, what)
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert expected in result.stderr
