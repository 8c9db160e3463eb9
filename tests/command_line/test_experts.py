"""--experts-in-memory: the same answers from every command, with figures of what was read."""

import json
import shutil
from pathlib import Path

import pytest
import typer

from afmoe_mlx import batch_generate, device, generate, load
from afmoe_mlx.cache import PrefixStore
from afmoe_mlx.chat import Conversation
from afmoe_mlx.command_line.options import experts_in_memory
from afmoe_mlx.errors import CheckpointError
from helpers.command_line import run
from helpers.tiny import tiny_folder

BUDGET = 40_000
WORDS = "hello to the world, hello to the world, hello to the"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("600MB", 600_000_000),
        ("2.5G", 2_500_000_000),
        ("1 gb", 10**9),
        ("64KiB", 65_536),
        ("123", 123),
        ("auto", "auto"),
    ],
)
def test_sizes_are_read_as_people_write_them(given: str, expected: int | str) -> None:
    assert experts_in_memory(given) == expected


@pytest.mark.parametrize("given", ["", "much", "-1GB", "0", "1.GB", "GB", "Auto "])
def test_what_is_no_size_is_refused(given: str) -> None:
    with pytest.raises(typer.BadParameter, match="no size"):
        experts_in_memory(given)


def test_generate_answers_the_same_and_says_what_was_read(model: str) -> None:
    asked = ("generate", "--model", model, "--prompt", WORDS, "-m", "9", "--json")
    plain, read = (json.loads(run(*asked, *more).out) for more in ((), ("--experts-in-memory", f"{BUDGET}")))
    assert read["text"] == plain["text"]
    assert "experts" not in plain
    found = read["experts"]
    assert found["hits"] + found["misses"] > 0
    assert found["bytes_read"] == found["bytes_per_token"] * 8
    assert found["prompt_bytes_read"] > 0
    told = run(*asked[:-1], "--experts-in-memory", f"{BUDGET}").err
    assert "of experts in memory" in told
    assert "read a token" in told


def test_info_says_what_to_expect(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "copy_bandwidth", lambda *_: 1e10)
    found = json.loads(run("info", model, "--experts-in-memory", f"{BUDGET}", "--json").out)["experts_in_memory"]
    assert 0 < found["bytes"] <= BUDGET
    assert found["slots"] >= 2
    speeds = [each["tps"] for each in found["expected_tps"]]
    assert speeds == sorted(speeds)
    assert "Tokens/s to expect" in run("info", model, "--experts-in-memory", f"{BUDGET}").out
    assert "all of them: they fit" in run("info", model, "--experts-in-memory", "auto").out


def test_bench_counts_what_was_read(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "copy_bandwidth", lambda *_: 1e10)
    asked = ("bench", "--model", model, "-p", "8", "-g", "4", "-n", "1", "--json")
    found = json.loads(run(*asked, "--experts-in-memory", f"{BUDGET}").out)
    assert found["experts"]["misses"] > 0
    assert found["bytes_per_token"] == json.loads(run(*asked).out)["bytes_per_token"]


def test_guesses_rows_and_a_store_change_nothing(model: str) -> None:
    plain, (read, tokenizer) = load(model), load(model, experts_in_memory=BUDGET)
    expected = generate(*plain, WORDS, max_tokens=20)
    store = PrefixStore(read, max_bytes=1 << 20)
    for options in ({"prompt_lookup": 4}, {"store": store}, {"store": store}, {"prefill_step_size": 3}):
        assert generate(read, tokenizer, WORDS, max_tokens=20, **options) == expected
    prompts = [WORDS, "hello", "the world"]
    texts = [batch_generate(*loaded, prompts, max_tokens=6).texts for loaded in (plain, (read, tokenizer))]
    assert texts[0] == texts[1]


def test_a_conversation_goes_on_once_its_file_is_back(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    talks = [
        Conversation(*loaded, options={"max_tokens": 6})
        for loaded in (load(folder), load(folder, experts_in_memory=BUDGET))
    ]
    path = folder / "model.safetensors"
    for talk in talks:
        list(talk.reply("hello"))
    path.rename(tmp_path / "away")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be read"):
        list(talks[1].reply("the world"))
    shutil.copyfile(tmp_path / "away", path)
    answers = ["".join(chunk.text for chunk in talk.reply("the world, hello to")) for talk in talks]
    assert answers[0] == answers[1]
    assert talks[0].messages == talks[1].messages
