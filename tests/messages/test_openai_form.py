"""Messages in OpenAI's form reach a template as it reads them: an agent's whole conversation, in every family."""

from pathlib import Path
from typing import Any

import pytest

from afmoe_mlx.errors import InputError
from afmoe_mlx.messages import AnswerReader, read_answer
from afmoe_mlx.messages.openai_form import for_template
from afmoe_mlx.messages.tool_formats import FORMATS, ToolFormat, format_of, named
from afmoe_mlx.messages.tools import check_tools
from afmoe_mlx.tokenizer import Tokenizer
from helpers import tiny_tokenizers
from helpers.chat_templates import CHATML, LFM2, LFM25, LLAMA, SPECIAL_TOKENS, TOOLS, XML
from helpers.tiny import TEMPLATE


def call(name: str, arguments: Any, **more: Any) -> dict[str, Any]:
    return {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}, **more}


CONVERSATION = [
    {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]},
    {"role": "user", "content": "Sun?"},
    {
        "role": "assistant",
        "content": None,
        "reasoning_content": "hm",
        "tool_calls": [call("weather", '{"city": "Zürich", "days": [1, 2]}'), call("clock", "", index=1)],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": '{"sun": true}'}]},
    {"role": "tool", "tool_call_id": "call_1", "content": "12:00"},
]
# The same as Transformers' templates take it.
PREPARED = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Sun?"},
    {
        "role": "assistant",
        "content": "",
        "reasoning_content": "hm",
        "tool_calls": [call("weather", {"city": "Zürich", "days": [1, 2]}), call("clock", {})],
    },
    {"role": "tool", "content": '{"sun": true}'},
    {"role": "tool", "content": "12:00"},
]
# For a template that knows neither calls nor reasoning.
IN_CONTENT = (
    "<think>\nhm\n</think>\n\n<|tool_call_start|>[weather(city='Zürich', days=[1, 2]), clock()]<|tool_call_end|>"
)
WITHOUT_CALLS = [*PREPARED[:2], {"role": "assistant", "content": IN_CONTENT}, *PREPARED[3:]]
FAMILIES = {
    "hermes": (CHATML, PREPARED),
    "qwen3_coder": (XML, PREPARED),
    "pythonic": (LFM25, PREPARED),
    "pythonic, no calls": (LFM2, WITHOUT_CALLS),
}
RENDERED = {
    "hermes": "<think>\nhm\n</think>\n\n\n<tool_call>\n"
    '{"name": "weather", "arguments": {"city": "Zürich", "days": [1, 2]}}\n</tool_call>\n'
    '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>',
    "qwen3_coder": "<think>hm</think>\n<tool_call>\n<function=weather>\n<parameter=city>\nZürich\n</parameter>\n"
    "<parameter=days>\n[1, 2]\n</parameter>\n</function>\n</tool_call>\n"
    "<tool_call>\n<function=clock>\n</function>\n</tool_call>",
    "pythonic": "<think>hm</think><|tool_call_start|>[weather(city='Zürich', days=[1, 2]), clock()]<|tool_call_end|>",
    "pythonic, no calls": IN_CONTENT,
}


def tokenizer_with(template: str | None, **tokens: str) -> Tokenizer:
    import tokenizers

    templates = {} if template is None else {"default": template}
    backend = tiny_tokenizers.byte_level()
    backend.add_tokens([tokenizers.AddedToken(token) for token in tokens.values()])
    return Tokenizer(backend, special_tokens=SPECIAL_TOKENS, chat_templates=templates)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_whole_agents_conversation_is_rendered(family: str) -> None:
    template, _ = FAMILIES[family]
    tokenizer = tokenizer_with(template)
    messages = for_template(CONVERSATION, tokenizer)
    text = tokenizer.apply_chat_template(messages, tools=TOOLS, tokenize=False, add_generation_prompt=True)
    assert f"<|im_start|>assistant\n{RENDERED[family]}<|im_end|>\n" in text
    assert "Be brief." in text
    assert text.index('{"sun": true}') < text.index("12:00")


@pytest.mark.reference
@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_rendered_as_transformers_renders_what_its_templates_take(family: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = tiny_tokenizers.save(tmp_path / "m", tokenizer_config=SPECIAL_TOKENS)
    reference = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    template, prepared = FAMILIES[family]
    tokenizer = tokenizer_with(template)
    for count in range(2, len(CONVERSATION) + 1):
        options: dict[str, Any] = {"tools": TOOLS, "tokenize": False, "add_generation_prompt": True}
        ours = tokenizer.apply_chat_template(for_template(CONVERSATION[:count], tokenizer), **options)
        assert ours == reference.apply_chat_template(prepared[:count], chat_template=template, **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_that_is_read_goes_back_as_it_was_written(family: str) -> None:
    tokenizer = tokenizer_with(FAMILIES[family][0])
    answer = read_answer(RENDERED[family], tokenizer, TOOLS)
    message = answer.as_message() | {"content": answer.content.strip("\n")}
    messages = for_template([*CONVERSATION[:2], message], tokenizer)
    assert RENDERED[family] in tokenizer.apply_chat_template(messages, tools=TOOLS, tokenize=False)


@pytest.mark.parametrize("content", ["", "Well"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_malformed_call_goes_back_too(family: str, content: str) -> None:
    tokenizer = tokenizer_with(FAMILIES[family][0])
    message = {"role": "assistant", "content": content, "tool_calls": [call("weather", '{"city": "Zü')]}
    messages = for_template([*CONVERSATION[:2], message], tokenizer)
    text = tokenizer.apply_chat_template(messages, tools=TOOLS, tokenize=False)
    form = FORMATS[family.partition(",")[0]]
    written = form.write([("weather", '{"city": "Zü')])
    assert f"<|im_start|>assistant\n{content + form.between if content else ''}{written}<|im_end|>" in text
    (again,) = read_answer(written, tokenizer, TOOLS).tool_calls
    assert again.error
    assert '{"city": "Zü' in again.arguments


def test_an_answer_without_calls_has_no_empty_list_of_them() -> None:
    message = {"role": "assistant", "content": "yes", "tool_calls": []}
    assert for_template([message], tokenizer_with(LFM25)) == [{"role": "assistant", "content": "yes"}]


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {}}]},
            "part of type 'image_url', expected text",
        ),
        ({"role": "user", "content": 5}, "messages[1]: content is of type int"),
        ({"role": "assistant", "tool_calls": [{"function": {}}]}, "messages[1].tool_calls[0] has no name"),
        ("x", "messages[1] is of type str"),
        ({"role": "assistant", "tool_calls": 5}, "tool_calls are of type int"),
        ({"role": "assistant", "tool_calls": ["f"]}, "messages[1].tool_calls[0] has no name"),
        ({"role": "assistant", "tool_calls": [call("f", [1])]}, "arguments are of type list"),
    ],
)
def test_what_is_no_message_is_refused_by_its_place(message: Any, words: str) -> None:
    with pytest.raises(InputError) as error:
        for_template([{"role": "user", "content": "x"}, message], tokenizer_with(CHATML))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


START = "<|tool_call_start|>"


@pytest.mark.parametrize(
    ("tokenizer", "form"),
    [
        (tokenizer_with(CHATML), "hermes"),
        (tokenizer_with(XML), "qwen3_coder"),
        (tokenizer_with(LFM25), "pythonic"),
        (tokenizer_with(LFM2), "pythonic"),
        (tokenizer_with("{{ tools }}", start=START), "pythonic"),
        (tokenizer_with("{{ tools }}", start="<tool_call>"), "hermes"),
        (tokenizer_with("{{ tools }}"), None),
        (tokenizer_with(TEMPLATE, start=START), None),
        (tokenizer_with(LLAMA), None),
        (tokenizer_with(None, start=START), None),
    ],
)
def test_a_format_is_recognised_by_template_and_vocabulary(tokenizer: Tokenizer, form: str | None) -> None:
    found = format_of(tokenizer)
    assert (found.name if found else None) == form


def test_a_format_may_be_named() -> None:
    text = '<tool_call>{"name": "f"}</tool_call>'
    tokenizer = tokenizer_with(TEMPLATE)
    assert read_answer(text, tokenizer).content == text
    assert read_answer(text, tokenizer, tool_format="hermes").tool_calls[0].name == "f"
    with pytest.raises(InputError, match="expected one of hermes, qwen3_coder, pythonic"):
        AnswerReader(tokenizer, tool_format="xml")
    assert isinstance(named("pythonic"), ToolFormat)


@pytest.mark.parametrize(
    "tools", [{}, [1], [{"name": ""}], [{"function": {"name": "f", "parameters": 1}}], [{"name": "f"}] * 2]
)
def test_what_is_no_list_of_tools_is_refused_in_a_line(tools: Any) -> None:
    with pytest.raises(InputError, match="expected") as error:
        AnswerReader(tokenizer_with(CHATML), tools)
    assert "\n" not in str(error.value)


def test_a_tool_is_not_compared_with_all_the_others() -> None:
    class Name(str):
        __slots__ = ()
        compared = 0

        def __eq__(self, other: object) -> bool:
            Name.compared += 1
            return super().__eq__(other)

        __hash__ = str.__hash__

    check_tools([{"name": Name(i)} for i in range(500)])
    assert Name.compared < 500
