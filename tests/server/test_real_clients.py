"""The packages `openai` and `anthropic` against one real server: what their helpers accept is what clients get.

They take seconds to import, so only the process that runs these tests does.
"""

import json
import signal
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from pydantic import BaseModel

from helpers.chat_templates import CHATML
from helpers.scripted import scripted_folder
from helpers.serving import serve

KEY = "the-key-of-a-test"
CONTEXT = 2048
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Ulm"}}\n</tool_call>'
SAID, REPORT = "I look.", "It is 7 degrees."
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION = {"name": "weather", "description": "The weather in a city.", "parameters": PARAMETERS}
QUESTION: Any = {"role": "user", "content": "How warm is it in Ulm?"}


class Weather(BaseModel):
    city: Literal["Ulm"]
    degrees: Literal[7]


FOUND = Weather(city="Ulm", degrees=7)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server whose model calls a tool and then reports."""
    folder = scripted_folder(
        tmp_path_factory.mktemp("served") / "scripted",
        [f"{SAID}\n{CALL}", REPORT],
        template=CHATML.replace("think>", "note>"),  # to have no thoughts
        context=CONTEXT,
    )
    with serve(str(folder), environment={"AFMOE_MLX_API_KEY": KEY}) as server:
        yield server.url
        server.process.send_signal(signal.SIGTERM)
        assert server.end()[0] == 0


@pytest.fixture(scope="module")
def gpt(base: str) -> Any:
    import openai

    return openai.OpenAI(base_url=f"{base}/v1", api_key=KEY, max_retries=0, timeout=30)


@pytest.fixture(scope="module")
def claude(base: str) -> Any:
    import anthropic

    return anthropic.Anthropic(base_url=base, api_key=KEY, max_retries=0, timeout=30)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_task_by_chat_completions(gpt: Any, streamed: bool) -> None:
    messages = [QUESTION]
    tools: Any = [{"type": "function", "function": FUNCTION}]

    def ask() -> Any:
        if not streamed:
            return gpt.chat.completions.create(model="scripted", messages=messages, tools=tools)
        with gpt.chat.completions.stream(
            model="scripted", messages=messages, tools=tools, stream_options={"include_usage": True}
        ) as stream:
            return stream.get_final_completion()

    first = ask()
    (choice,) = first.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content.strip() == SAID
    (call,) = choice.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Ulm"})
    messages += [choice.message.model_dump(exclude_none=True, include={"role", "content", "tool_calls"})]
    messages += [{"role": "tool", "tool_call_id": call.id, "content": "7 degrees"}]
    second = ask()
    assert second.choices[0].message.content == REPORT
    assert second.choices[0].finish_reason == "stop"
    assert second.usage.prompt_tokens > first.usage.prompt_tokens
    assert second.usage.prompt_tokens_details.cached_tokens > 0


@pytest.mark.parametrize("streamed", [False, True])
def test_a_task_by_responses(gpt: Any, streamed: bool) -> None:
    said: list[Any] = [QUESTION]
    tools: Any = [{"type": "function", "strict": False, **FUNCTION}]

    def ask() -> Any:
        if not streamed:
            return gpt.responses.create(model="scripted", input=said, tools=tools, store=False)
        with gpt.responses.stream(model="scripted", input=said, tools=tools, store=False) as stream:
            return stream.get_final_response()

    first = ask()
    assert first.status == "completed"
    assert first.output_text.strip() == SAID
    (call,) = (item for item in first.output if item.type == "function_call")
    assert (call.name, json.loads(call.arguments)) == ("weather", {"city": "Ulm"})
    said += [item.model_dump(exclude_none=True, exclude={"parsed_arguments", "parsed"}) for item in first.output]
    said += [{"type": "function_call_output", "call_id": call.call_id, "output": "7 degrees"}]
    second = ask()
    assert second.output_text == REPORT
    assert second.usage.input_tokens_details.cached_tokens > 0


@pytest.mark.parametrize("streamed", [False, True])
def test_a_task_by_messages(claude: Any, streamed: bool) -> None:
    messages: list[Any] = [QUESTION]
    tools: Any = [{"name": "weather", "description": "The weather.", "input_schema": PARAMETERS}]

    def ask() -> Any:
        if not streamed:
            return claude.messages.create(model="scripted", max_tokens=100, messages=messages, tools=tools)
        with claude.messages.stream(model="scripted", max_tokens=100, messages=messages, tools=tools) as stream:
            return stream.get_final_message()

    first = ask()
    assert first.stop_reason == "tool_use"
    text, call = first.content
    assert text.text.strip() == SAID
    assert (call.name, call.input) == ("weather", {"city": "Ulm"})
    messages += [{"role": "assistant", "content": first.content}]
    messages += [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "7 degrees"}]}]
    second = ask()
    assert [block.text for block in second.content] == [REPORT]
    assert second.stop_reason == "end_turn"
    assert second.usage.cache_read_input_tokens > 0


def test_the_tool_runner_of_anthropic(claude: Any) -> None:
    import anthropic

    asked = []

    @anthropic.beta_tool  # type: ignore[untyped-decorator]
    def weather(city: str) -> str:
        """The weather in a city.

        Args:
            city: Its name.
        """
        asked.append(city)
        return "7 degrees"

    runner = claude.beta.messages.tool_runner(model="scripted", max_tokens=100, messages=[QUESTION], tools=[weather])
    last = runner.until_done()
    assert asked == ["Ulm"]
    assert last.content[0].text == REPORT


def test_answers_as_objects(gpt: Any, claude: Any) -> None:
    """Which the model, that knows nothing of them, writes because nothing else is allowed."""
    chat = gpt.chat.completions.parse(model="scripted", messages=[QUESTION], response_format=Weather)
    assert chat.choices[0].message.parsed == FOUND
    response = gpt.responses.parse(model="scripted", input=[QUESTION], text_format=Weather)
    assert response.output_parsed == FOUND
    message = claude.messages.parse(model="scripted", max_tokens=100, messages=[QUESTION], output_format=Weather)
    assert message.parsed_output == FOUND


def test_several_answers_with_log_probabilities(gpt: Any) -> None:
    answer = gpt.chat.completions.create(
        model="scripted", messages=[QUESTION], n=2, logprobs=True, top_logprobs=2, temperature=0, seed=1
    )
    for choice in answer.choices:
        assert "".join(token.token for token in choice.logprobs.content) == choice.message.content
        assert all(len(token.top_logprobs) == 2 for token in choice.logprobs.content)


@pytest.mark.parametrize("streamed", [False, True])
def test_completions(gpt: Any, streamed: bool) -> None:
    answer = gpt.completions.create(model="scripted", prompt="<|turn_1|>", stream=streamed)
    text = "".join(c.choices[0].text for c in answer if c.choices) if streamed else answer.choices[0].text
    assert text == REPORT


def test_the_model_is_listed(gpt: Any) -> None:
    assert [model.id for model in gpt.models.list()] == ["scripted"]
    assert gpt.models.retrieve("scripted").id == "scripted"


def test_tokens_are_counted_as_they_are_used(claude: Any) -> None:
    counted = claude.messages.count_tokens(model="scripted", messages=[QUESTION])
    used = claude.messages.create(model="scripted", max_tokens=1, messages=[QUESTION]).usage
    assert counted.input_tokens == used.input_tokens + (used.cache_read_input_tokens or 0)


def test_errors_are_those_that_the_packages_know(base: str, gpt: Any, claude: Any) -> None:
    import anthropic
    import openai

    long = {"role": "user", "content": "word " * CONTEXT}
    create, say = gpt.chat.completions.create, claude.messages.create
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{base}/v1", api_key="wrong", max_retries=0).models.list()
    with pytest.raises(openai.NotFoundError, match="scripted"):
        create(model="another", messages=[QUESTION])
    with pytest.raises(openai.BadRequestError, match="temperature") as found:
        create(model="scripted", messages=[QUESTION], temperature=-1)
    assert found.value.param == "temperature"
    with pytest.raises(openai.BadRequestError, match="nonsense"):
        create(model="scripted", messages=[QUESTION], extra_body={"nonsense": 1})
    with pytest.raises(openai.BadRequestError) as found:
        create(model="scripted", messages=[long])
    assert found.value.code == "context_length_exceeded"
    with pytest.raises(anthropic.AuthenticationError):
        anthropic.Anthropic(base_url=base, api_key="wrong", max_retries=0).messages.count_tokens(
            model="scripted", messages=[QUESTION]
        )
    with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: [0-9]+ tokens > [0-9]+ maximum"):
        say(model="scripted", max_tokens=1, messages=[long])
    with pytest.raises(anthropic.BadRequestError, match="temperature"):
        say(model="scripted", max_tokens=1, messages=[QUESTION], extra_body={"temperature": -1})


@pytest.mark.parametrize("word", ["bearer", "x-api-key"])
def test_either_header_shows_the_key(base: str, word: str) -> None:
    import anthropic

    how = {"auth_token": KEY} if word == "bearer" else {"api_key": KEY}
    client = anthropic.Anthropic(base_url=base, max_retries=0, **how)
    assert client.messages.count_tokens(model="scripted", messages=[QUESTION]).input_tokens
