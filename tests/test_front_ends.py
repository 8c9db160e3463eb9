"""One table of options: what ends an answer and how its tokens are chosen has the same names in every front end."""

import inspect
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import pytest

from afmoe_mlx.chat.conversation import settings
from afmoe_mlx.command_line.requests import answering
from afmoe_mlx.command_line.requests.answering import ChatRequest, GenerateRequest
from afmoe_mlx.generation import check_options, stream_generate
from afmoe_mlx.generation.options import SAMPLING, STOPPING
from helpers.command_line import run

# What one command alone can mean: generate has its prompts, which it may take as they are; a chat goes on and is kept.
OWN: dict[type, set[str]] = {
    GenerateRequest: {
        "prompt",
        "prompts",
        "max_rows",
        "prefill_response",
        "ignore_chat_template",
        "prompt_cache_file",
        "tool_choice",
        "verbose",
    },
    ChatRequest: {"question", "no_think", "resume", "no_save", "no_history", "no_markdown", "mcp", "allow_tool"},
}
# An example of each, as it is typed after --name or /set, and as Python has it.
EXAMPLES: Mapping[str, tuple[list[str], Any]] = {
    "max_tokens": (["9"], 9),
    "stop": (["a b", "c"], ["a b", "c"]),
    "extra_eos_token": (["hello", "5"], ["hello", "5"]),
    "reasoning_budget": (["500"], 500),
    "temperature": (["0.5"], 0.5),
    "top_p": (["0.9"], 0.9),
    "min_p": (["0.1"], 0.1),
    "min_tokens_to_keep": (["2"], 2),
    "top_k": (["40"], 40),
    "xtc_probability": (["0.5"], 0.5),
    "xtc_threshold": (["0.2"], 0.2),
    "repetition_penalty": (["1.1"], 1.1),
    "repetition_context_size": (["0"], 0),
    "presence_penalty": (["0.5"], 0.5),
    "presence_context_size": (["64"], 64),
    "frequency_penalty": (["-0.5"], -0.5),
    "frequency_context_size": (["0"], 0),
    "no_repeat_ngram_size": (["3"], 3),
    "logit_bias": (["5=-3", "7=2.5"], {5: -3.0, 7: 2.5}),
    "seed": (["7"], 7),
}


def option_names(request: type) -> list[str]:
    return [field.name for field in fields(request) if field.name not in OWN[request]]


def test_generate_and_chat_have_the_same_options_in_the_same_order() -> None:
    assert option_names(GenerateRequest) == option_names(ChatRequest)
    for request, own in OWN.items():
        assert own <= {field.name for field in fields(request)}


def test_no_front_end_lacks_an_option_of_another() -> None:
    answer = {*SAMPLING, *STOPPING}
    command_line = {answering.PYTHON_NAMES.get(name, name) for name in answering.STREAM_OPTIONS}
    assert answer == EXAMPLES.keys() == settings.MEANINGS.keys()
    assert answer <= command_line
    python = {*inspect.signature(stream_generate).parameters, *SAMPLING}
    assert {*STOPPING, *command_line} <= python
    check_options(**{name: value for name, (_, value) in EXAMPLES.items()})


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_what_is_typed_on_the_command_line_is_what_python_takes(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[dict[str, Any]] = []

    def answer(self: Any) -> dict[str, Any]:
        taken.append(told(self))
        raise SystemExit(0)

    told = answering.AnswerRequest.stream_options.fget  # type: ignore[attr-defined]
    monkeypatch.setattr(answering.AnswerRequest, "stream_options", property(answer))
    flags = {python: name for name, python in answering.PYTHON_NAMES.items()}
    typed = [
        word
        for name, (texts, _) in EXAMPLES.items()
        for text in texts
        for word in (f"--{flags.get(name, name).replace('_', '-')}", text)
    ]
    start = {"generate": ["generate", "-p", "x"], "chat": ["chat", "x"]}[command]
    assert run(*start).code == run(*start, *typed).code == 0
    nothing, everything = taken
    assert {name: nothing[name] for name in EXAMPLES} == dict.fromkeys(EXAMPLES)
    assert {name: everything[name] for name in EXAMPLES} == {name: value for name, (_, value) in EXAMPLES.items()}


@pytest.mark.parametrize("name", EXAMPLES)
def test_set_takes_each_and_shows_it_as_it_is_typed(name: str) -> None:
    texts, value = EXAMPLES[name]
    options: dict[str, Any] = {}
    settings.change(options, name, " ".join(f"'{text}'" if " " in text else text for text in texts), 100)
    assert options == {name: value}
    (shown,) = (setting.shown for setting in settings.current(options, {}) if setting.name == name)
    again: dict[str, Any] = {}
    settings.change(again, name, shown, 100)
    assert again == options


def test_a_question_after_an_extra_eos_token_is_the_question(model: str) -> None:
    """mlx-lm's flag takes several values, where no argument may follow."""
    result = run("chat", "--model", model, "-m", "3", "--extra-eos-token", "</s>", "what is it?")
    assert result.code == 0
    assert result.err == "The answer is cut off after 3 tokens: --max-tokens allows more.\n"
    assert run("generate", "--model", model, "-m", "3", "-p", "x", "--extra-eos-token", "</s>", "5").code == 0
