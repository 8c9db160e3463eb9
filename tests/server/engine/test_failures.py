"""An error ends what it concerns alone; weights go and come back; a service closes and leaves nobody waiting."""

import asyncio
import weakref
from pathlib import Path
from threading import Event
from typing import Any

import mlx.core as mx
import pytest

from afmoe_mlx import load
from afmoe_mlx.cache import PrefixStore
from afmoe_mlx.errors import InputError
from afmoe_mlx.generation import BatchAnswers
from afmoe_mlx.generation.chunks import AnswerChunks
from afmoe_mlx.models import CausalLM
from afmoe_mlx.server.engine import service as service_module
from afmoe_mlx.server.engine.service import ModelService
from afmoe_mlx.server.errors import RequestError
from afmoe_mlx.server.question import Question
from afmoe_mlx.tokenizer import Tokenizer
from helpers.asking import Heard, Prompted, call, heard, run, service, started, until, user
from helpers.tiny import tiny_folder


def test_an_error_of_one_answer_ends_that_alone(
    endless: tuple[CausalLM, Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    push = AnswerChunks.push

    def failing(chunks: AnswerChunks, token: int, logprobs: mx.array) -> Any:
        if chunks._limit == 7:
            raise ValueError("a secret")
        return push(chunks, token, logprobs)

    async def both(service: ModelService) -> tuple[RequestError, int]:
        other = Prompted(service, max_tokens=30)
        with pytest.raises(RequestError) as error:
            await heard(service, user("x", options={"max_tokens": 7}))
        return error.value, (await other.task)[0].told.completion_tokens

    monkeypatch.setattr(AnswerChunks, "push", failing)
    error, tokens = run(service(endless), both)
    assert (error.status, tokens) == (500, 30)
    assert "secret" not in str(error)


def test_logits_that_are_no_numbers_end_their_answer_alone_and_say_so(tmp_path: Path) -> None:
    model, tokenizer = load(tiny_folder(tmp_path / "m"))
    model.lm_head.weight = mx.full(model.lm_head.weight.shape, mx.nan)

    async def asking(service: ModelService) -> list[RequestError]:
        found = []
        for _ in range(2):
            with pytest.raises(RequestError, match="no numbers") as error:
                await heard(service, user("?"))
            found.append(error.value)
        assert service.state().failures == service.state().running == 0
        return found

    assert [error.status for error in run(service((model, tokenizer)), asking)] == [500, 500]


def test_a_model_that_fails_in_a_prompt_is_built_anew(
    endless: tuple[CausalLM, Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = type(endless[0])
    run_model, asked_once = kind.__call__, user("?", options={"max_tokens": 3})

    def broken(*arguments: Any, **options: Any) -> mx.array:
        monkeypatch.setattr(kind, "__call__", run_model)
        raise RuntimeError("[METAL] out of everything")

    async def failing(service: ModelService) -> tuple[int, int]:
        running = Prompted(service)
        await until(lambda: service.state().running == 1)
        monkeypatch.setattr(kind, "__call__", broken)
        for task in (asyncio.ensure_future(heard(service, asked_once)), running.task):
            with pytest.raises(RequestError) as error:
                await task
            assert error.value.status == 503
        (after,) = await heard(service, asked_once)
        return service.state().failures, after.told.completion_tokens

    assert run(service(endless), failing) == (1, 3)


def test_where_the_model_fails_what_runs_fails_and_what_waits_is_answered(
    endless: tuple[CausalLM, Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    step, stores = CausalLM.step, []

    async def failing(service: ModelService) -> tuple[RequestError, Heard, int]:
        running = Prompted(service)
        await until(lambda: service.state().running == 1)
        waiting = asyncio.ensure_future(heard(service, user("x", options={"max_tokens": 3})))
        await until(lambda: service.state().waiting == 1)
        monkeypatch.setattr(CausalLM, "step", broken)
        with pytest.raises(RequestError) as error:
            await running.task
        return error.value, (await waiting)[0], service.state().failures

    def broken(*arguments: Any) -> mx.array:
        monkeypatch.setattr(CausalLM, "step", step)
        raise RuntimeError("[METAL] out of everything")

    def make_store(model: CausalLM) -> PrefixStore:
        stores.append(PrefixStore(model, max_bytes=1 << 20))
        return stores[-1]

    error, heard_after, failures = run(service(endless, max_rows=1, make_store=make_store), failing)
    assert (error.status, error.code, failures) == (503, "unavailable", 1)
    assert error.retry_after
    assert heard_after.answer.content == "again and "[:8] or heard_after.told.completion_tokens == 3
    assert len(stores) == 2


def test_a_thread_that_makes_no_step_is_not_alive(
    endless: tuple[CausalLM, Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, step = Event(), BatchAnswers.step

    async def stuck(service: ModelService) -> None:
        assert service.state().is_alive
        task = asyncio.ensure_future(heard(service, user("x", options={"max_tokens": 2})))
        await until(lambda: service.state().running == 1 and not service.state().is_alive)
        with pytest.raises(RequestError, match="not running"):
            await service.ask([user("?")], call())
        gate.set()
        await task
        await until(lambda: service.state().is_alive)

    monkeypatch.setattr(BatchAnswers, "step", lambda answers: (gate.wait(30) and step(answers)) or [])
    monkeypatch.setattr(service_module, "STALLED", 0.02)
    run(service(endless), stuck)


def test_a_thread_that_died_is_not_alive_and_leaves_nobody_waiting(
    endless: tuple[CausalLM, Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    def dying(answers: BatchAnswers) -> Any:
        raise SystemExit

    async def dead(service: ModelService) -> list[Any]:
        both = [Prompted(service).task, Prompted(service).task]
        found = await asyncio.gather(*both, return_exceptions=True)
        await until(lambda: not service.state().is_alive)
        with pytest.raises(RequestError, match="not running"):
            await service.ask([user("?")], call())
        return found

    monkeypatch.setattr(BatchAnswers, "step", dying)
    found = run(service(endless, max_rows=1), dead)
    assert [error.status for error in found] == [503, 503]


def test_weights_that_rest_are_let_go_of_and_come_back(
    tmp_path: Path, random: tuple[CausalLM, Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    usable = 1 << 30
    model, tokenizer = load(tiny_folder(tmp_path / "m"))
    loads: list[weakref.ref[CausalLM]] = []

    def again() -> CausalLM:
        loaded = load(tmp_path / "m")[0]
        loads.append(weakref.ref(loaded))
        return loaded

    idle: Any = {"idle_unload": 0.02, "load": again}
    idle["make_store"] = lambda model: PrefixStore(model, directory=tmp_path / "kept", block_size=16)
    question, weights = Question(prompt=[1] * 70, options={"max_tokens": 5}), weakref.ref(model)
    made = ModelService(model, tokenizer, name="tiny", **idle)
    monkeypatch.setattr(made._memory, "_usable", lambda: usable if weights() is None else usable // 2)
    monkeypatch.setattr(made._memory, "_workspace", 0)
    monkeypatch.setattr(PrefixStore, "max_bytes", PrefixStore.nbytes)
    del model

    async def resting(service: ModelService) -> list[Heard]:
        first = await heard(service, question)
        await until(lambda: weights() is None)
        assert not service.state().is_loaded
        assert service._memory.most == usable // 2  # what the weights need is not free
        assert service.state().is_alive
        second = await heard(service, question)
        assert service.state().is_loaded
        return first + second

    first, second = run(made, resting)
    assert first.answer.content == second.answer.content
    assert (first.told.cached_tokens, second.told.cached_tokens) == (0, 64)
    assert len(loads) == 1
    with pytest.raises(InputError, match="load"):
        service(random, idle_unload=1.0)


def test_what_cannot_be_loaded_again_is_told_and_tried_again(
    tmp_path: Path,
) -> None:
    model, tokenizer = load(tiny_folder(tmp_path / "m"))
    outcomes: list[Any] = [OSError("gone"), model]

    def again() -> CausalLM:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome  # type: ignore[no-any-return]

    async def trying(service: ModelService) -> RequestError:
        await until(lambda: service.state().is_loaded)
        await until(lambda: not service.state().is_loaded)
        with pytest.raises(RequestError) as error:
            await heard(service, user("?", options={"max_tokens": 1}))
        await heard(service, user("?", options={"max_tokens": 1}))
        return error.value

    error = run(ModelService(model, tokenizer, name="tiny", idle_unload=0.02, load=again), trying)
    assert error.status == 503


def test_a_service_that_closes_finishes_what_it_may_and_takes_no_more(endless: tuple[CausalLM, Tokenizer]) -> None:
    async def closing() -> None:
        made = service(endless)
        async with started(made):
            short = asyncio.ensure_future(heard(made, user("x", options={"max_tokens": 40})))
            await until(lambda: made.state().running == 1)
            closed = asyncio.ensure_future(made.close(30))
            await asyncio.sleep(0)
            with pytest.raises(RequestError, match="shutting down") as refused:
                await made.ask([user("?")], call())
            assert refused.value.status == 503
            await closed
            assert (await short)[0].told.completion_tokens == 40
        made = service(endless)
        async with started(made):
            long = Prompted(made)
            await until(lambda: made.state().running == 1)
            await made.close(0.01)
            with pytest.raises(RequestError, match="shutting down"):
                await long.task
            assert not made.state().is_alive

    asyncio.run(closing())


def test_who_waits_for_a_thread_when_it_closes_is_told_so(
    endless: tuple[CausalLM, Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, opened = service(endless), Event()
    monkeypatch.setattr(made._renderer, "count", lambda question: opened.wait(60))

    async def closing() -> list[Any]:
        async with started(made):
            counting = [asyncio.ensure_future(made.count_tokens(user("?"))) for _ in range(3)]
            await asyncio.sleep(0)
            await made.close(0)
            opened.set()
            return await asyncio.gather(*counting, return_exceptions=True)

    first, second, third = asyncio.run(closing())
    assert first is second is True
    assert isinstance(third, RequestError)
    assert third.status == 503
