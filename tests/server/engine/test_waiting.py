"""Requests that wait, for a row, for memory or for what constraints need, and clients that leave."""

import asyncio
from threading import Event
from typing import Any

import pytest

from afmoe_mlx.api import DEMO
from afmoe_mlx.generation import BatchAnswers, grammar
from afmoe_mlx.generation.prompt_reader import PromptReader
from afmoe_mlx.generation.requests import Request
from afmoe_mlx.models import CausalLM
from afmoe_mlx.server.engine.service import ModelService
from afmoe_mlx.server.errors import RequestError
from afmoe_mlx.server.question import Question
from afmoe_mlx.tokenizer import Tokenizer
from afmoe_mlx.tokenizer.guidance import Guidance
from helpers.asking import Heard, Prompted, asked, call, heard, run, service, steps, until, user
from helpers.experts import streamed


def test_what_several_answers_are_held_to_is_made_once(
    scripted: tuple[CausalLM, Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    class Counted(grammar.Constraint):
        def __init__(self, guidance: Guidance, text: str) -> None:
            made.append(text)
            super().__init__(guidance, text)

    monkeypatch.setattr(grammar, "Constraint", Counted)
    one = Question(prompt="x", options={"json_schema": {"enum": [1, 22]}, "max_tokens": 8})
    other = Question(prompt="x", options={"json_schema": {"enum": [3]}, "max_tokens": 8})
    told = asked(scripted, one, one, other, one)
    assert [one.answer.content in ("1", "22") for one in told] == [True, True, False, True]
    assert told[2].answer.content == "3"
    assert len(made) == 3


def test_who_leaves_frees_the_row_wherever_the_request_is(endless: tuple[CausalLM, Tokenizer]) -> None:
    async def leaving(service: ModelService) -> list[str | None]:
        written = Prompted(service)
        await until(lambda: service.state().running == 1)
        waiting = Prompted(service)
        await until(lambda: service.state().waiting == 1)
        await waiting.leave()
        assert service.state().waiting == 0
        await written.leave()
        await until(lambda: service.state().running == 0)
        await until(lambda: service.state().cache_bytes == 0)
        return [written.call.reason, waiting.call.reason]

    assert run(service(endless, max_rows=1), leaving) == ["removed", "removed"]


def test_who_leaves_while_a_prompt_is_read_frees_what_was_read(
    random: tuple[CausalLM, Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, step = Event(), BatchAnswers.step

    def gated(answers: BatchAnswers) -> Any:
        made = step(answers)
        gate.wait(10)
        return made

    async def leaving(service: ModelService) -> None:
        task = asyncio.ensure_future(heard(service, Question(prompt=[1] * 100, options={"max_tokens": 1})))
        await until(lambda: service.state().running == 1)
        task.cancel()
        await asyncio.wait([task])
        gate.set()
        await until(lambda: service.state().running == service.state().cache_bytes == 0)

    monkeypatch.setattr(BatchAnswers, "step", gated)
    monkeypatch.setattr("afmoe_mlx.device.prefill_step", lambda seen: 16)
    run(service(random), leaving)


def test_who_leaves_while_a_prompt_is_swept_is_heard_between_two_layers_each_of_which_is_a_sign_of_life(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, under_way, gate, signs = streamed(DEMO, 2), Event(), Event(), list[float | None]()
    made, go_on = ModelService(model, Tokenizer.from_folder(DEMO), name="demo"), PromptReader._go_on_with

    def gated(reader: PromptReader, request: Request) -> None:
        signs.append(made._engine._stepped)
        if len(signs) == 2:
            under_way.set()
            gate.wait(10)
        go_on(reader, request)

    async def leaving(service: ModelService) -> None:
        left = Prompted(service)
        await until(under_way.is_set)
        await left.leave()
        assert service.state().running == 1
        gate.set()
        await until(lambda: service.state().running == 0)
        assert service.state().cache_bytes == service.state().failures == 0
        await heard(service, user("x", options={"max_tokens": 1}))
        assert len(signs) == 2 + len(model.layers)

    monkeypatch.setattr(PromptReader, "_go_on_with", gated)
    run(made, leaving)
    assert signs == sorted(set(signs))


def test_of_each_owner_so_many_may_wait_and_more_are_told_when_to_come_back(
    endless: tuple[CausalLM, Tokenizer],
) -> None:
    async def crowd(service: ModelService) -> RequestError:
        Prompted(service)
        await until(lambda: service.state().running == 1)
        Prompted(service)
        await until(lambda: service.state().waiting == 1)
        async with await service.ask([user("?")], call("another")):
            with pytest.raises(RequestError) as refused:
                await service.ask([user("?")], call())
        return refused.value

    error = run(service(endless, max_rows=1, max_queue=1), crowd)
    assert (error.status, error.code) == (429, "queue_full")
    assert error.retry_after


def narrow(loaded: tuple[CausalLM, Tokenizer], tokens: int) -> ModelService:
    """A service with memory for so many tokens of one row."""
    made = service(loaded, make_store=lambda model: None)
    memory = made._memory
    total = memory.needed(tokens) + memory._workspace
    memory._usable = lambda: total - memory.held.rows
    return made


def test_a_request_waits_until_what_it_may_need_is_free(endless: tuple[CausalLM, Tokenizer]) -> None:
    async def waiting(service: ModelService) -> Heard:
        first = Prompted(service, max_tokens=600)
        await until(lambda: service.state().running == 1)
        second = asyncio.ensure_future(heard(service, user("?", options={"max_tokens": 300})))
        await until(lambda: service.state().waiting == 1)
        small = asyncio.ensure_future(heard(service, user("?", options={"max_tokens": 1})))
        await until(lambda: service.state().waiting == 2)  # though it would fit: it came later
        await steps()
        assert (service.state().running, service.state().waiting) == (1, 2)
        await first.leave()
        await small
        return (await second)[0]

    assert run(narrow(endless, 700), waiting).told.completion_tokens == 300


def test_what_can_never_fit_is_refused_and_what_is_asked_for_is_cut_to_what_does(
    endless: tuple[CausalLM, Tokenizer],
) -> None:
    made = narrow(endless, 2000)
    rendered = made._renderer.render([Question(prompt=[1] * 900, options={"max_tokens": 5000})])
    assert 1100 <= rendered[0].options["max_tokens"] < 5000
    with pytest.raises(RequestError, match=r"9000 tokens needs .* of memory") as error:
        made._renderer.render([Question(prompt=[1] * 9000)])
    assert error.value.status == 400


def test_where_others_have_taken_the_memory_nobody_waits_for_it(endless: tuple[CausalLM, Tokenizer]) -> None:
    made = narrow(endless, 2000)

    async def taken(service: ModelService) -> RequestError:
        usable, asked = service._memory._usable, list[int]()
        service._memory._usable = lambda: asked.append(0) or usable() if not asked else 0
        with pytest.raises(RequestError) as error:
            await heard(service, user("?", options={"max_tokens": 10}))
        return error.value

    assert run(made, taken).status == 503


def test_who_waits_for_what_constraints_need_holds_up_nobody(
    random: tuple[CausalLM, Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, made = Event(), Guidance.tokenizer.fget
    assert made is not None
    monkeypatch.setattr(Guidance, "tokenizer", property(lambda self: gate.wait(10) and made(self)))

    async def both(service: ModelService) -> str:
        asked = user("?", options={"regex": "yes|no"})
        held = [asyncio.ensure_future(heard(service, asked)) for _ in range(3)]
        await asyncio.sleep(0.01)
        (free,) = await heard(service, user("?", options={"max_tokens": 2}))
        assert free.told.completion_tokens == 2
        assert not any(task.done() for task in held)
        gate.set()
        return (await held[0])[0].answer.content

    assert run(service(random), both) in ("yes", "no")


def test_rows_and_slices_are_those_that_were_chosen(
    endless: tuple[CausalLM, Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, begin = list[dict[str, Any]](), BatchAnswers.__init__
    monkeypatch.setattr(BatchAnswers, "__init__", lambda *a, **k: made.append(k) or begin(*a, **k))
    for chosen in ({}, {"max_rows": 3, "prefill_slice": 0.5}):
        asked(endless, user("?", options={"max_tokens": 1}), **chosen)
    assert [options["max_rows"] for options in made] == [16, 3]
    assert [options["chunk_seconds"] for options in made] == [0.25, 0.5]
