"""Chat templates: goldens, Transformers' rendering of the same, what is picked, refused and left open."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afmoe_mlx.errors import TokenizerError
from afmoe_mlx.tokenizer import Tokenizer
from afmoe_mlx.tokenizer.template import ChatTemplate
from helpers import tiny_tokenizers
from helpers.chat_templates import (
    ASSISTANT,
    CALL,
    CHATML,
    CHATS,
    GENERATION,
    GOLDENS,
    LLAMA,
    MISTRAL,
    SPECIAL_TOKENS,
    TEMPLATES,
    TOOLS,
    USER,
)


def tokenizer_with(template: str | None, **more: str) -> Tokenizer:
    templates = more if template is None else {"default": template, **more}
    return Tokenizer(tiny_tokenizers.byte_level(), special_tokens=SPECIAL_TOKENS, chat_templates=templates)


remembered = cache(tokenizer_with)  # rendering changes none of them


def render(template: str, messages: Any, **kwargs: Any) -> str:
    return remembered(template).apply_chat_template(messages, tokenize=False, **kwargs)


def refusal(template: str, messages: Any = CHATS["user"], **kwargs: Any) -> str:
    with pytest.raises(TokenizerError) as raised:
        render(template, messages, **kwargs)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(("template", "chat"), GOLDENS)
def test_a_template_renders_its_golden(template: str, chat: str) -> None:
    tools = None if template == "macros" else TOOLS
    assert render(TEMPLATES[template], CHATS[chat], tools=tools, add_generation_prompt=True) == GOLDENS[template, chat]


def test_ids_hold_the_special_tokens_the_template_writes_and_no_others() -> None:
    tokenizer = tokenizer_with("{{ bos_token }}{{ messages[0].content }}")
    assert tokenizer.apply_chat_template([USER]) == [0, *tokenizer.encode(USER["content"], add_special_tokens=False)]


def test_template_kwargs_reach_the_template_and_win_over_special_tokens() -> None:
    assert render("{{ bos_token }}{{ enable_thinking }}", [USER], bos_token="<B>", enable_thinking=False) == "<B>False"


def test_a_conversation_is_rendered_without_an_open_turn_unless_one_is_asked_for() -> None:
    assert render(CHATML, [USER], add_generation_prompt=True).startswith(render(CHATML, [USER]))
    assert "assistant" not in render(CHATML, [USER])
    assert render(CHATML, [USER], add_generation_prompt=True).endswith("<|im_start|>assistant\n")


def test_rendering_leaves_the_messages_alone() -> None:
    messages = [{"role": "user", "content": "a", "tool_calls": None}]
    render("{{ messages[0].content }}", messages, continue_final_message=True)
    assert messages == [{"role": "user", "content": "a", "tool_calls": None}]


def test_generation_blocks_print_their_body() -> None:
    assert render(GENERATION, CHATS["answered"]) == "<user>  Hello, 世界 👋\nHi there. </s>"


def test_continuing_leaves_the_final_message_open() -> None:
    opened = render(CHATML, CHATS["answered"], continue_final_message=True)
    assert opened.endswith("<|im_start|>assistant\nHi there. ")


def test_continuing_a_message_that_the_template_trims_ends_trimmed() -> None:
    assert render(LLAMA, CHATS["answered"], continue_final_message=True).endswith("Hi there.")


def test_continuing_can_leave_another_field_open() -> None:
    messages = [USER, {"role": "assistant", "reasoning_content": "hm", "content": ""}]
    opened = render(CHATML, messages, continue_final_message="reasoning_content")
    assert opened.endswith("<think>\nhm")


@pytest.mark.parametrize(
    ("template", "messages", "message"),
    [
        ("{{ messages[0].role }}", CHATS["user"], 'does not read "content"'),
        ("{# content #}x", CHATS["user"], "drops or changes"),
        (CHATML, [CALL], 'has no "content"'),
        (CHATML, [{"role": "user", "content": [{"type": "image"}]}], "holds no text"),
    ],
)
def test_a_final_message_that_cannot_be_continued_is_refused(template: str, messages: Any, message: str) -> None:
    assert message in refusal(template, messages, continue_final_message=True)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (MISTRAL, "Roles must alternate user/assistant!"),
        ("{{ messages[9].content.strip() }}", "list object has no element 9"),
        ("{{ missing.content }}", "'missing' is undefined"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ messages[0].content + 1 }}", "TypeError"),
        ("{{ messages.append(1) }}", "'append' of 'list' object is unsafe"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ namespace(__init__=1) }}", "underscore"),
        ("{% set ns = namespace() %}{% set ns._a = 1 %}", "underscore"),
        ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("x\n{% if %}", "line 2"),
        ("{{ messages | nope }}", "nope"),
    ],
)
def test_a_templates_own_error_is_one_line_of_ours(template: str, message: str) -> None:
    assert message in refusal(template, [ASSISTANT])


@pytest.mark.parametrize(
    "messages", ["hello", {"role": "user"}, ["hello"], [], [{"role": "user", "content": object()}], [None]]
)
def test_what_is_no_conversation_is_refused(messages: Any) -> None:
    refusal(CHATML, messages)


@pytest.mark.parametrize("tools", [[print], ["weather"], {"name": "weather"}, "weather"])
def test_tools_must_be_schemas(tools: Any) -> None:
    assert "JSON schema" in refusal(CHATML, tools=tools)


def test_what_is_nested_without_end_is_refused_in_a_line() -> None:
    nested: dict[str, Any] = {}
    for _ in range(900):
        nested = {"properties": {"a": nested}}
    call = {"function": {"name": "f", "arguments": nested}}
    assert "nested too deeply" in refusal(CHATML, tools=[nested])
    assert "nested too deeply" in refusal(CHATML, [{"role": "assistant", "content": "", "tool_calls": [call]}])


def test_a_tokenizer_without_a_template_says_so() -> None:
    tokenizer = tokenizer_with(None)
    assert tokenizer.chat_template is None
    with pytest.raises(TokenizerError, match="no chat template"):
        tokenizer.apply_chat_template([USER])


def test_the_tool_template_is_picked_when_tools_are_given() -> None:
    tokenizer = tokenizer_with("plain", tool_use="tools")
    assert tokenizer.apply_chat_template([USER], tokenize=False) == "plain"
    assert tokenizer.apply_chat_template([USER], tools=TOOLS, tokenize=False) == "tools"


def test_without_a_default_the_names_there_are_listed() -> None:
    with pytest.raises(TokenizerError, match="only rag, tool_use"):
        tokenizer_with(None, tool_use="a", rag="b").apply_chat_template([USER])


@pytest.mark.parametrize(
    ("left_out", "expected"),
    [
        ([], "jinja"),
        (["chat_template.jinja"], "json"),
        (["chat_template.jinja", "chat_template.json"], "config"),
        (["chat_template.jinja", "chat_template.json", "tokenizer_config.json"], None),
    ],
)
def test_a_template_file_wins_over_the_config(tmp_path: Path, left_out: list[str], expected: str | None) -> None:
    template: dict[str, Any] = {"chat_template": "json"}
    config = {"chat_template": [{"name": "default", "template": "config"}, {"name": "rag", "template": "other"}]}
    tiny_tokenizers.save(tmp_path, chat_template=template, tokenizer_config=config)
    (tmp_path / "chat_template.jinja").write_text("jinja", encoding="utf-8")
    for name in left_out:
        (tmp_path / name).unlink()
    assert Tokenizer.from_folder(tmp_path).chat_template == expected


def test_additional_templates_are_read_beside_the_default(tmp_path: Path) -> None:
    tiny_tokenizers.save(tmp_path, tokenizer_config={"chat_template": "config"})
    (tmp_path / "chat_template.jinja").write_text("plain", encoding="utf-8")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("tools", encoding="utf-8")
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.apply_chat_template([USER], tools=TOOLS, tokenize=False) == "tools"


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Any:
    transformers = pytest.importorskip("transformers")
    folder = tiny_tokenizers.save(tmp_path_factory.mktemp("reference"), tokenizer_config=SPECIAL_TOKENS)
    return transformers.PreTrainedTokenizerFast.from_pretrained(folder)


def both(reference: Any, template: str, messages: Any, **kwargs: Any) -> tuple[str | None, str | None]:
    """What ours and Transformers render; None for a refusal."""
    try:
        ours = render(template, messages, **kwargs)
    except TokenizerError:
        ours = None
    if kwargs.get("continue_final_message"):
        kwargs["add_generation_prompt"] = False
    try:
        theirs = reference.apply_chat_template(messages, chat_template=template, tokenize=False, **kwargs)
    except Exception:
        theirs = None
    return ours, theirs


@pytest.mark.reference
@pytest.mark.parametrize("chat", CHATS.values(), ids=CHATS.keys())
@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES.keys())
def test_rendering_equals_transformers(reference: Any, template: str, chat: Any) -> None:
    for tools in (None, [], TOOLS):
        for add_generation_prompt in (True, False):
            options = {"tools": tools, "add_generation_prompt": add_generation_prompt, "enable_thinking": False}
            ours, theirs = both(reference, template, chat, **options)
            assert ours == theirs


@pytest.mark.reference
@pytest.mark.parametrize("chat", CHATS.values(), ids=CHATS.keys())
@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES.keys())
@pytest.mark.parametrize("field", [True, "reasoning_content", "thinking", "tool_calls"])
def test_continuing_equals_transformers(reference: Any, template: str, chat: Any, field: bool | str) -> None:
    for length in {len(chat), *range(2, min(4, len(chat)))}:
        ours, theirs = both(reference, template, chat[:length], continue_final_message=field)
        assert ours == theirs


@pytest.mark.reference
@pytest.mark.parametrize(
    "template",
    [
        "{{ messages | tojson(ensure_ascii=true, separators=(',', ':')) }}",
        "{{ dict.fromkeys(['a', 'b'], 1) }} {{ dict([['a', 1]], b=2) }}",
        "{{ dict.fromkeys(['a']) }} {{ namespace(self=1).self }}",
        "{% set ns = namespace({'a': 1}, b=2) %}{{ ns.a + ns.b }}",
        "{% for m in messages %}\n  {% if loop.first %}\n    x\n  {% endif %}\n{% endfor %}\n\n",
        "{{ messages.pop() }}",
        "{{ undefined_name }}|{{ undefined_name is defined }}|{{ messages[0].nope }}",
        "{% generation %}{% set x = 1 %}{% endgeneration %}{{ x is defined }}",
        "{{ 'a' | e }}{{ '<' | escape }}{{ '<' | tojson }}",
    ],
)
def test_the_environment_equals_transformers(reference: Any, template: str) -> None:
    ours, theirs = both(reference, template, CHATS["turns"])
    assert ours == theirs


def test_a_template_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    original = ChatTemplate.__init__

    def counting(self: ChatTemplate, source: str) -> None:
        compiled.append(source)
        original(self, source)

    monkeypatch.setattr(ChatTemplate, "__init__", counting)
    tokenizer = tokenizer_with("{{ messages[0].content }}")
    tokenizer.apply_chat_template([USER])
    tokenizer.with_extra_eos(["1"]).apply_chat_template([USER])
    assert len(compiled) == 1


def call_of(arguments: Any, *, is_flat: bool = False) -> list[dict[str, Any]]:
    call = {"name": "weather", "arguments": arguments}
    calls = [call if is_flat else {"type": "function", "id": "1", "function": call}]
    return [USER, {"role": "assistant", "content": None, "tool_calls": calls}]


NAMED = "{% for call in messages[1].tool_calls %}{% for name, value in (call.function or call).arguments.items() %}"
NAMED += "{{ name }}={{ value }};{% endfor %}{% endfor %}"


@pytest.mark.parametrize("source", [CHATML, NAMED], ids=["as JSON", "one by one"])
@pytest.mark.parametrize("is_flat", [False, True])
@settings(max_examples=20, deadline=None)
@given(arguments=st.dictionaries(st.text(), st.none() | st.integers() | st.text() | st.lists(st.booleans())))
def test_arguments_of_a_call_read_the_same_as_a_mapping_and_as_its_json(
    source: str, is_flat: bool, arguments: dict[str, Any]
) -> None:
    told = call_of(json.dumps(arguments), is_flat=is_flat)
    assert render(source, told) == render(source, call_of(arguments, is_flat=is_flat))
    assert told == call_of(json.dumps(arguments), is_flat=is_flat)  # the caller's stay as they are


@pytest.mark.parametrize("text", ["", "{", "city=Zürich", "[1]", '"x"', "3", "[" * 100_000])
def test_arguments_that_are_no_json_object_stay_text(text: str) -> None:
    source = "{{ messages[1].tool_calls[0].function.arguments is string }}"
    assert render(source, call_of(text)) == "True"


@pytest.mark.parametrize("calls", [3, "x", [None], [{"function": "f"}], [{"function": {}}]])
def test_calls_of_another_form_are_left_to_the_template(calls: Any) -> None:
    message = {"role": "assistant", "content": "a", "tool_calls": calls}
    assert render("{{ messages[0].tool_calls | tojson }}", [message]) == json.dumps(calls)
