"""Commands about what is said and how: /regenerate, /edit, /undo, /set, /model and their like."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from afmoe_mlx.chat import View
from afmoe_mlx.chat.conversation.engine import Engine, for_another_model
from afmoe_mlx.errors import AdapterError, CheckpointError, FitError
from helpers.fake_engine import FakeConversation, FakeModel, FakeTokenizer
from helpers.talk import Talk


def test_regenerate_edit_and_undo_change_the_last_turn_alone(talk: Callable[..., Talk]) -> None:
    lines = ["one", "two", "/regenerate", "/edit", "/edit", "/edit"]
    found = talk(*lines, edits=["better", None, "better"], conversation=FakeConversation(["A", "B", "C", "D", "E"]))
    assert found.reader.edited == ["two", "better", "better"]
    assert found.said == ["one", "A", "better", "D"]
    assert "Nothing is changed." in found.shown
    assert "as it was" in found.shown
    assert talk("one", "two", "/undo").said == ["one", "first answer"]
    assert talk("one", "two", "/undo 2").said == []
    assert "nothing to take back" in talk("/undo").shown


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/undo none", "expected 1 or more, found 'none'"),
        ("/undo 0", "expected 1 or more"),
        ("/regenerate", "send one first"),
        ("/edit", "send one first"),
        ("/copy", "no answer to copy"),
        ("/load", "takes the name"),
        ("/load nothing", "no saved chats"),
        ("/export", "ends in .md or .json"),
        ("/export chat.md", "nothing to write"),
        ("/think maybe", "expected show or hide"),
        ("/set temperature 0.1 0.2", "expected one"),
        ("/set temprature 1", "did you mean temperature?"),
        ("/file nowhere.txt", "no such file"),
        ("/model other", "no other model"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_the_chat_goes_on(
    talk: Callable[..., Talk], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    found = talk(line, "/set")
    assert re.search(rf"^error: .*{re.escape(words)}", found.shown, re.MULTILINE), found.shown
    assert "temperature" in found.shown


def test_set_shows_changes_and_gives_back_the_models_own(talk: Callable[..., Talk]) -> None:
    found = talk("/set temp 0.25", "/set top-k 7", "/set top_k default", "/set seed", "/set temperature cold")
    assert found.conversation.options == {"max_tokens": 2048, "temperature": 0.25, "top_k": None}
    assert "temperature is 0.25 (set)" in found.shown
    assert "seed is random" in found.shown
    assert "error: temperature is 'cold'" in found.shown


def test_the_system_prompt_is_shown_changed_and_removed(talk: Callable[..., Talk]) -> None:
    found = talk("/system", "/system Be brief.\x1b[31m", "/system", "hello")
    assert found.said[:2] == ["Be brief.\x1b[31m", "hello"]
    assert "There is no system prompt" in found.shown
    assert "Be brief.\\x1b[31m" in found.shown
    assert talk("/system x", "/system none", "hello").said == ["hello", "first answer"]


class Source:
    """Other models: "small" has a context of 32 tokens."""

    def adapted(self, name: str, options: Any, adapters: Sequence[str]) -> Engine:
        if "broken" in adapters:
            raise AdapterError("broken: no adapter_config.json")
        model: Any = FakeModel(4096)
        tokenizer: Any = FakeTokenizer()
        return Engine(name, model, tokenizer, options, None)

    def another(self, name: str, options: Any) -> Engine:
        if name == "huge":
            raise FitError("huge needs 900 GB")
        if name == "broken":
            raise CheckpointError("broken: no config.json")
        model: Any = FakeModel(32 if name == "small" else 4096)
        tokenizer: Any = FakeTokenizer()
        return Engine(name, model, tokenizer, for_another_model(options), None)


def test_another_model_takes_over_the_conversation_and_one_that_fails_changes_nothing(
    talk: Callable[..., Talk],
) -> None:
    source: Any = Source()
    found = talk("one", "/model broken", "/model huge", "/model", "/model new", "two", "/model", source=source)
    assert found.said == ["one", "first answer", "two", "second answer"]
    assert "error: broken: no config.json" in found.shown
    assert "--resume --model NAME" in found.shown
    assert re.search(r"^demo\..*^new\.", found.shown, re.MULTILINE | re.DOTALL)
    assert found.chat.folder.list()[0].model == "new"


def test_an_adapter_goes_on_with_the_model_and_one_that_fails_changes_nothing(talk: Callable[..., Talk]) -> None:
    source: Any = Source()
    lines = (
        "/adapter",
        "/adapter broken",
        "/adapter",
        "/adapter style 'more facts'",
        "/adapter",
        "one",
        "/adapter none",
    )
    found = talk(*lines, "/adapter", "/adapter style", "/model new", "/adapter", source=source)
    assert found.shown.count("There is no adapter.") == 4
    assert "error: broken: no adapter_config.json" in found.shown
    assert "style, more facts. /adapter DIR" in found.shown
    assert "demo answers with the adapter from now on." in found.shown
    assert "demo answers without an adapter from now on." in found.shown
    assert "error:" in talk("/adapter 'half", source=source).shown


def test_an_adapter_keeps_all_settings_of_the_model(talk: Callable[..., Talk]) -> None:
    source: Any = Source()
    found = talk("/set logit_bias 7=1", "/adapter style", "/set logit_bias", source=source)
    assert "logit_bias is 7=1 (set)" in found.shown
    assert "is not kept" not in found.shown


def test_a_bias_is_of_a_token_that_there_is_and_does_not_outlive_its_model(talk: Callable[..., Talk]) -> None:
    source: Any = Source()
    found = talk("/set logit_bias 99999=1", "/set logit_bias 7=1", "/model new", "/set logit_bias", source=source)
    assert "error: logit_bias has token 99999" in found.shown
    assert "logit_bias is 7=1 (set)" in found.shown
    assert "logit_bias is not kept" in found.shown
    assert "logit_bias is none (default)" in found.shown
    unset = FakeConversation([], options={"logit_bias": None})
    assert "logit_bias" not in talk("/model new", conversation=unset, source=source).shown


def test_think_show_gives_the_last_reasoning_and_keeps_the_next(talk: Callable[..., Talk]) -> None:
    conversation = FakeConversation(["<think>it is so</think>Yes.", "<think>or not</think>No."])
    found = talk("really?", "/think show", "sure?", "/think hide", "/think", conversation=conversation)
    assert found.shown.index("Yes.") < found.shown.index("it is so") < found.shown.index("or not")
    assert "folded to a line: /think show" in found.shown
    assert not found.chat.view.thinking
    conversation = FakeConversation(["<think>it is so</think>Yes."])
    assert "it is so" in talk("really?", view=View(thinking=True), conversation=conversation).shown


def test_stats_tell_of_the_last_answer(talk: Callable[..., Talk]) -> None:
    shown = talk("hello", "again", "/stats").shown
    assert re.search(r"conversation: 2 turns, context \d+ of 4,096", shown)
    assert re.search(r"last prompt: \d+ tokens, \d+ of them known", shown)


def test_a_temperature_of_zero_is_told_when_the_same_is_asked_again(talk: Callable[..., Talk]) -> None:
    assert "the answer is likely the same" in talk("hello", "/regenerate").shown
    assert "likely" not in talk("/set temperature 1", "hello", "/regenerate").shown
