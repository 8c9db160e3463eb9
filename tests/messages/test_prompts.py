"""Answers go back to a template as it reads them: their reasoning in its field or in the content, always closed."""

from pathlib import Path
from typing import Any

import pytest

from afmoe_mlx.messages.prompts import Prompts
from afmoe_mlx.tokenizer import Tokenizer
from helpers.chat_templates import CHATML
from helpers.tiny import TEMPLATE
from helpers.tiny_tokenizers import save

# As Qwen's: reads the field, else parts the content; reasoning of turns before the last is left out.
QWEN = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- set content = message.content %}
    {%- if message.role == 'assistant' %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.last %}{{- '<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' }}{%- endif %}
    {%- endif %}
    {{- content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
# As DeepSeek's and Liquid's: parts the content, keeps reasoning only if told; opens the reasoning itself.
STRIPPING = """\
{%- for message in messages %}
    {%- set content = message["content"] %}
    {%- if message["role"] == "assistant" and not preserve_thinking and "</think>" in content %}
        {%- set content = content.split("</think>")[-1] | trim %}
    {%- endif %}
    {{- "<|im_start|>" + message["role"] + "\\n" + content + "<|im_end|>\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|im_start|>assistant\\n" + ("" if enable_thinking is false else "<think>\\n") }}
{%- endif %}
"""
# As gpt-oss's: another name of the field.
THINKING_FIELD = """\
{%- for message in messages %}
    {%- if message.thinking %}{{- '<analysis>' + message.thinking + '</analysis>' }}{%- endif %}
    {{- '<' + message.role + '>' + message.content }}
{%- endfor %}
"""
WHOLE = "<think>\nwhy\n</think>\n\nyes"
CUT = "<think>\nwhy"


@pytest.fixture
def rendered(tmp_path: Path) -> Any:
    def render(template: str, *answers: str, **variables: Any) -> str:
        folder = save(tmp_path / "m", tokenizer_config={"chat_template": template})
        prompts = Prompts(Tokenizer.from_folder(folder), variables)
        messages = [{"role": "user", "content": "?"}]
        for answer in answers:
            messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": "?"}]
        text = prompts.tokenizer.decode(prompts.prompt(messages).tokens)
        return text.removeprefix("<|im_start|>user\n?<|im_end|>\n")

    return render


END = "<|im_end|>\n<|im_start|>user\n?<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("template", "variables", "whole", "cut"),
    [
        (TEMPLATE, {}, WHOLE, CUT + "\n</think>\n\n"),
        (CHATML, {}, WHOLE, CUT + "\n</think>\n\n"),
        (QWEN, {}, "yes", ""),
        (STRIPPING, {"enable_thinking": False}, "yes", ""),
        (STRIPPING, {"enable_thinking": False, "preserve_thinking": True}, WHOLE, CUT + "\n</think>\n\n"),
    ],
    ids=["plain", "field", "field or content", "content", "content, preserved"],
)
def test_reasoning_goes_back_closed_and_as_the_template_reads_it(
    rendered: Any, template: str, variables: dict[str, Any], whole: str, cut: str
) -> None:
    start = "<|im_start|>assistant\n"
    assert rendered(template, WHOLE, **variables) == start + whole + END
    assert rendered(template, CUT, **variables) == start + cut + END
    assert rendered(template, "yes", **variables) == start + "yes" + END
    assert rendered(template, CUT, WHOLE, **variables) == start + cut + END + whole + END


@pytest.mark.parametrize("name", ["thinking", "reasoning"])
def test_a_field_of_another_name_is_filled_too(rendered: Any, name: str) -> None:
    template = THINKING_FIELD.replace("thinking", name)
    assert "<analysis>why</analysis><assistant>yes" in rendered(template, WHOLE)
    assert "<analysis>why</analysis><assistant><user>" in rendered(template, CUT)
    assert "analysis" not in rendered(template, "yes")


def test_the_users_own_tags_stay_as_they_are(rendered: Any, tmp_path: Path) -> None:
    folder = save(tmp_path / "u", tokenizer_config={"chat_template": CHATML})
    prompts = Prompts(Tokenizer.from_folder(folder), {})
    prompt = prompts.prompt([{"role": "user", "content": "what is <think>"}])
    assert prompts.tokenizer.decode(prompt.tokens).startswith("<|im_start|>user\nwhat is <think><|im_end|>")
    assert prompt.opened == ""


def test_the_template_that_opens_the_reasoning_is_heard(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", tokenizer_config={"chat_template": STRIPPING})
    tokenizer, question = Tokenizer.from_folder(folder), [{"role": "user", "content": "?"}]
    assert Prompts(tokenizer, {}).prompt(question).opened == "<think>\n"
    assert Prompts(tokenizer, {"enable_thinking": False}).prompt(question).opened == ""
