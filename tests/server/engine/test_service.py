"""The service over a real engine: answers are those alone, and what cannot be answered is a clear error."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from afmoe_mlx import generate, load
from afmoe_mlx.api import DEMO
from afmoe_mlx.models import CausalLM
from afmoe_mlx.server.engine.service import ModelService
from afmoe_mlx.server.errors import ContextLengthError, RequestError
from afmoe_mlx.server.question import Progress, Question
from afmoe_mlx.tokenizer import Tokenizer
from helpers.asking import (
    CALLED,
    THOUGHT,
    Heard,
    Prompted,
    asked,
    call,
    failed,
    heard,
    run,
    service,
    steps,
    until,
    user,
)
from helpers.experts import streamed
from helpers.hosts import split
from helpers.scripted import scripted_folder

TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"properties": {"at": {"type": "string"}}}}}]


def test_greedy_answers_of_many_at_once_are_those_alone(random: tuple[CausalLM, Tokenizer]) -> None:
    texts = ["once", "upon a time there was", "a " * 40, "x", "yes or no?", "the end " * 9]

    async def all_at_once(service: ModelService) -> list[list[Heard]]:
        questions = [Question(prompt=text, options={"max_tokens": 6 + n}) for n, text in enumerate(texts)]
        return await asyncio.gather(*(heard(service, question) for question in questions))

    found = run(service(random, max_rows=3), all_at_once)
    alone = [generate(*random, text, max_tokens=6 + n, temperature=0.0) for n, text in enumerate(texts)]
    assert [one.answer.content for (one,) in found] == alone


def test_calls_reasoning_and_content_are_told_apart(scripted: tuple[CausalLM, Tokenizer]) -> None:
    (first,) = asked(scripted, user("?", tools=TOOLS))
    assert (first.answer.content.strip(), first.told.reason) == ("Let me see.", "tool_calls")
    assert [(c.name, c.arguments) for c in first.answer.tool_calls] == [("look", '{"at": "the sky"}')]
    (plain,) = asked(scripted, user("?"))
    assert (plain.answer.content, plain.told.reason) == (CALLED, "stop")
    second = Question(messages=[{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}])
    (thought,) = asked(scripted, second)
    assert (thought.answer.content, thought.answer.reasoning.strip()) == ("It is blue.", "What is it?")
    assert 0 < thought.told.reasoning_tokens < thought.told.completion_tokens == len(THOUGHT[::4]) + 1


TWICE = CALLED[CALLED.index("<") :] + "\n" + CALLED[CALLED.index("<") :] + " and more, much more than that."


@pytest.mark.parametrize(("is_parallel", "calls"), [(True, 2), (False, 1)])
def test_where_calls_come_one_by_one_an_answer_ends_with_its_first(
    tmp_path: Path, is_parallel: bool, calls: int
) -> None:
    async def calling(service: ModelService) -> list[Heard]:
        asked = user("?", tools=TOOLS, parallel_tool_calls=is_parallel)
        found = await heard(service, asked, asked)
        await until(lambda: service.state().running == 0 and not service._jobs)  # which it would wait for at its end
        return found

    for one in run(service(load(scripted_folder(tmp_path / "m", [TWICE]))), calling):
        assert (len(one.answer.tool_calls), one.told.reason) == (calls, "tool_calls")
        assert ("more" in one.answer.content) == is_parallel


def test_a_stop_text_that_ended_an_answer_is_told(scripted: tuple[CausalLM, Tokenizer]) -> None:
    question = user("?", options={"stop": ["never", "me s"]})
    (one,) = asked(scripted, question)
    assert (one.answer.content, one.told.stop_sequence, one.told.reason) == ("Let ", "me s", "stop")


def test_an_answer_that_was_begun_is_gone_on_with(scripted: tuple[CausalLM, Tokenizer]) -> None:
    begun = Question(
        messages=[{"role": "user", "content": "?"}, {"role": "assistant", "content": "It"}], continues=True
    )
    rendered = service(scripted)._renderer.render([begun])[0]
    assert scripted[1].decode(rendered.prompt).endswith("<|im_start|>assistant\nIt")
    assert rendered.beginning == "It"


def test_of_reasoning_that_was_begun_the_rest_is_reasoning_until_content_follows(
    scripted: tuple[CausalLM, Tokenizer],
) -> None:
    for content, beginning in [("", "<think>\nWhat"), ("It", "<think>\nWhat\n</think>\n\nIt")]:
        said = {"role": "assistant", "content": content, "reasoning_content": "What"}
        begun = Question(messages=[{"role": "user", "content": "?"}, said], continues=True)
        rendered = service(scripted)._renderer.render([begun])[0]
        assert scripted[1].decode(rendered.prompt).endswith(f"<|im_start|>assistant\n{beginning}")
        reader = rendered.reader(scripted[1])
        assert reader is not None
        assert reader.is_reasoning == (not content)


def test_how_far_a_prompt_is_read_is_told_before_its_answer(scripted: tuple[CausalLM, Tokenizer]) -> None:
    question = Question(prompt=[1] * 1300, options={"max_tokens": 2}, tells_progress=True)

    async def told(service: ModelService, question: Question) -> tuple[list[Progress], bool]:
        async with await service.ask([question], call()) as answers:
            updates = [update async for update in answers]
        is_first = [update.progress is not None for update in updates]
        return [one.progress for one in updates if one.progress], is_first == sorted(is_first, reverse=True)

    async def all_of_them(service: ModelService) -> list[tuple[list[Progress], bool]]:
        return [await told(service, one) for one in (question, question, replace(question, tells_progress=False))]

    (first, _), (again, _), (silent, _) = found = run(service(scripted), all_of_them)
    assert all(comes_first for _, comes_first in found)
    assert len(first) > 1
    assert [one.read for one in first] == sorted({one.read for one in first})
    assert {(one.total, one.cached) for one in first} == {(1300, 0)}
    assert first[-1].read == 1300
    assert again == [Progress(1300, again[0].cached, 1300)]
    assert 1200 < again[0].cached < 1300
    assert silent == []


def test_what_is_told_of_the_defaults_is_what_answers_are_made_with(tmp_path: Path) -> None:
    folder = scripted_folder(tmp_path / "m", [CALLED])
    (folder / "generation_config.json").write_text('{"do_sample": true, "temperature": 0.3, "top_k": 5}')
    defaults = service(load(folder), max_tokens=7).defaults
    assert (defaults["temperature"], defaults["top_k"], defaults["max_tokens"]) == (0.3, 5, 7)
    assert (defaults["top_p"], defaults["repetition_penalty"]) == (1.0, 1.0)


def test_logprobs_are_those_of_the_contents_tokens(scripted: tuple[CausalLM, Tokenizer]) -> None:
    (one,) = asked(scripted, user("?", tools=TOOLS, top_logprobs=2))
    assert b"".join(logprob.text for logprob in one.logprobs).decode() in CALLED
    assert [logprob.text for logprob in one.logprobs][:2] == [b"Let ", b"me s"]
    assert len(one.logprobs) * 4 < len(one.answer.content) + 8
    for logprob in one.logprobs:
        assert logprob.logprob == max(other.logprob for other in logprob.top) <= 0
        assert len(logprob.top) == 2
    assert not asked(scripted, user("?"))[0].logprobs


@pytest.mark.parametrize(
    ("question", "words"),
    [
        (Question(), "no messages"),
        (user("?", options={"temperature": -1}), "temperature"),
        (user("?", options={"nonsense": 1}), "nonsense"),
        (user("?", options={"json_schema": {"type": "string", "pattern": "(?=a)"}}), "json_schema"),
        (user("?", options={"tool_choice": "required"}), "tool"),
        (Question(messages=[{"role": "user", "content": [{"type": "image_url"}]}]), "image_url"),
        (Question(messages=[{"role": "user", "content": "?"}], continues=True), "gone on with"),
        (Question(prompt=[1 << 20]), "1048576"),
        (Question(prompt=""), "empty"),
    ],
)
def test_what_makes_no_sense_is_a_400_that_says_so(
    scripted: tuple[CausalLM, Tokenizer], question: Question, words: str
) -> None:
    error = failed(scripted, question)
    assert (error.status, "\n" in str(error)) == (400, False)
    assert words in str(error)


def test_tools_that_the_template_does_not_show_are_refused(random: tuple[CausalLM, Tokenizer]) -> None:
    assert failed(random, user("?", tools=TOOLS)).param == "tools"


def test_a_prompt_that_is_too_long_is_told_in_numbers(scripted: tuple[CausalLM, Tokenizer]) -> None:
    error = failed(scripted, Question(prompt=[1] * 16384))
    assert isinstance(error, ContextLengthError)
    assert str(error) == "prompt is too long: 16384 tokens > 16383 maximum"
    guessed = failed(scripted, Question(prompt="a b " * 40000))  # not all of it is read
    assert str(guessed) == "prompt is too long: 40000 tokens > 16383 maximum"
    many = failed(scripted, Question(messages=[{"role": "user", "content": ""}] * 20000))  # nor is any rendered
    assert str(many) == "prompt is too long: 20000 tokens > 16383 maximum"


@pytest.mark.parametrize(("asked_for", "given"), [(10**9, 4), (-1, 4), (None, 4), (3, 3)])
def test_the_answers_length_is_cut_to_the_room_there_is(
    endless: tuple[CausalLM, Tokenizer], asked_for: int | None, given: int
) -> None:
    rendered = service(endless)._renderer.render([Question(prompt=[1] * 16380, options={"max_tokens": asked_for})])
    assert rendered[0].options["max_tokens"] == given
    short = service(endless, max_tokens=7)._renderer.render([Question(prompt=[1])])
    assert short[0].options["max_tokens"] == 7


def test_one_conversation_asked_several_times_is_rendered_once(
    scripted: tuple[CausalLM, Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered: list[Any] = []
    render = Tokenizer.apply_chat_template
    monkeypatch.setattr(Tokenizer, "apply_chat_template", lambda *a, **k: rendered.append(a) or render(*a, **k))
    found = asked(scripted, *(user("?", options={"seed": n, "max_tokens": 3}) for n in range(3)), user("!"))
    assert len(rendered) == 2
    assert [one.told.completion_tokens for one in found[:3]] == [3, 3, 3]


def test_several_questions_are_begun_together(endless: tuple[CausalLM, Tokenizer]) -> None:
    async def together(service: ModelService) -> None:
        one = Prompted(service)
        await until(lambda: service.state().running == 1)
        two = asyncio.ensure_future(heard(service, *[user("x", options={"max_tokens": 2})] * 2))
        await until(lambda: service.state().waiting == 1)
        await steps()
        assert (service.state().running, service.state().waiting) == (1, 1)
        await one.leave()
        await two

    run(service(endless, max_rows=2), together)


def test_more_questions_than_rows_are_answered_too(endless: tuple[CausalLM, Tokenizer]) -> None:
    found = asked(endless, *[user("x", options={"max_tokens": 2})] * 5, max_rows=2)
    assert [one.told.completion_tokens for one in found] == [2] * 5


def test_a_request_counts_what_was_known_of_each_prompt_once(random: tuple[CausalLM, Tokenizer]) -> None:
    question, asked_by = Question(prompt="abcd " * 12, options={"max_tokens": 2}), call()
    found = run(service(random, max_rows=1), lambda service: heard(service, *[question] * 3, call=asked_by))
    assert [one.told.cached_tokens > 0 for one in found] == [False, True, True]
    assert (asked_by.prompt_tokens, asked_by.cached_tokens) == (found[0].told.prompt_tokens, 0)


def test_a_model_that_takes_no_batches_answers_one_at_a_time_and_the_same() -> None:
    model, tokenizer = load("demo")
    questions = [user(text, options={"max_tokens": 8}) for text in ("what is AFMoE?", "what is MLX?")]
    rows = []

    async def test(service: ModelService) -> list[str]:
        both = [asyncio.create_task(heard(service, question)) for question in questions]
        while not all(one.done() for one in both):
            rows.append(service.state().running)
            await asyncio.sleep(0.001)
        return [one.result()[0].answer.content for one in both]

    whole = run(ModelService(model, tokenizer, name="demo"), test)
    rows.clear()
    for lone in (streamed(DEMO, 2), split(DEMO, [4])[0]):
        assert run(ModelService(lone, tokenizer, name="demo"), test) == whole
    assert max(rows) == 1


def test_tokens_are_counted_without_an_answer(scripted: tuple[CausalLM, Tokenizer]) -> None:
    async def counting(service: ModelService) -> tuple[int, int]:
        question = user("?", tools=TOOLS)
        counted = await service.count_tokens(question)
        with pytest.raises(RequestError):
            await service.count_tokens(Question())
        return counted, (await heard(service, question))[0].told.prompt_tokens

    counted, told = run(service(scripted), counting)
    assert counted == told
