"""The service over a real engine: answers are those alone, each request ends by itself, and nothing is left behind."""

import asyncio
import json
import weakref
from pathlib import Path
from threading import Event
from typing import Any

import mlx.core as mx
import pytest

from afmoe_mlx import generate, load
from afmoe_mlx.api import DEMO
from afmoe_mlx.cache import PrefixStore
from afmoe_mlx.errors import InputError
from afmoe_mlx.generation import BatchAnswers, grammar
from afmoe_mlx.generation.chunks import AnswerChunks
from afmoe_mlx.models import CausalLM
from afmoe_mlx.server.engine import service as service_module
from afmoe_mlx.server.engine.service import ModelService
from afmoe_mlx.server.errors import ContextLengthError, RequestError
from afmoe_mlx.server.question import Question
from afmoe_mlx.tokenizer import Tokenizer
from afmoe_mlx.tokenizer.guidance import Guidance
from helpers.asking import Heard, call, heard, run, started, until, user
from helpers.chat_templates import CHATML, LFM25
from helpers.experts import streamed
from helpers.scripted import scripted_folder
from helpers.tiny import tiny_folder

TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"properties": {"at": {"type": "string"}}}}}]
CALLED = 'Let me see.\n<tool_call>\n{"name": "look", "arguments": {"at": "the sky"}}\n</tool_call>'
THOUGHT = "<think>\nWhat is it?\n</think>\n\nIt is blue."


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> tuple[CausalLM, Tokenizer]:
    """Says CALLED, then THOUGHT."""
    return load(scripted_folder(tmp_path_factory.mktemp("scripted") / "m", [CALLED, THOUGHT]))


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> tuple[CausalLM, Tokenizer]:
    return load(scripted_folder(tmp_path_factory.mktemp("endless") / "m", ["again and "], endless=True))


@pytest.fixture(scope="module")
def random(tmp_path_factory: pytest.TempPathFactory) -> tuple[CausalLM, Tokenizer]:
    return load(tiny_folder(tmp_path_factory.mktemp("random") / "m"))


def service(loaded: tuple[CausalLM, Tokenizer], **options: Any) -> ModelService:
    options = {"make_store": lambda model: PrefixStore(model, max_bytes=1 << 20, block_size=16)} | options
    return ModelService(*loaded, name="tiny", **options)


def asked(loaded: tuple[CausalLM, Tokenizer], *questions: Question, **options: Any) -> list[Heard]:
    return run(service(loaded, **options), lambda service: heard(service, *questions))  # type: ignore[no-any-return]


def failed(loaded: tuple[CausalLM, Tokenizer], *questions: Question, **options: Any) -> RequestError:
    with pytest.raises(RequestError) as failure:
        asked(loaded, *questions, **options)
    return failure.value


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


class Prompted:
    """A long answer that is under way."""

    def __init__(self, service: ModelService, **options: Any) -> None:
        self.service, self.call = service, call()
        self.question = user("again", options={"max_tokens": 10_000} | options)
        self.task = asyncio.ensure_future(heard(service, self.question, call=self.call))

    async def leave(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])


async def steps() -> None:
    """Let the engine make some."""
    await asyncio.sleep(0.03)


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
        await until(lambda: service.state().seconds_since_step > 0)
        task.cancel()
        await asyncio.wait([task])
        gate.set()
        await until(lambda: service.state().running == service.state().cache_bytes == 0)

    monkeypatch.setattr(BatchAnswers, "step", gated)
    monkeypatch.setattr("afmoe_mlx.device.prefill_step", lambda seen: 16)
    run(service(random), leaving)


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


def test_where_experts_are_read_requests_are_answered_one_at_a_time_and_the_same() -> None:
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
    assert run(ModelService(streamed(DEMO, 2), tokenizer, name="demo"), test) == whole
    assert max(rows) == 1


def test_what_one_owner_has_asked_no_other_finds(random: tuple[CausalLM, Tokenizer]) -> None:
    async def both(service: ModelService) -> list[int]:
        question = Question(prompt=[1] * 70, options={"max_tokens": 1})
        owners = ("one", "two", "", "one")
        return [(await heard(service, question, call=call(owner)))[0].told.cached_tokens for owner in owners]

    assert run(service(random), both) == [0, 0, 0, 64]


LOOK = {"properties": {"at": {"enum": [70, 80]}, "far": {"enum": [1, 2.5]}}}
LOOK |= {"type": "object", "required": ["at", "far"], "additionalProperties": False}
LOOKING = [{"type": "function", "function": {"name": "look", "parameters": LOOK}}]
TERSE = LFM25.replace("message.thinking is defined", "false").replace("<think>", "")
BLOCK = 16


def conversation(turn: Heard, result: str) -> list[dict[str, Any]]:
    """After a turn, as a client sends it back: calls in OpenAI's form, arguments written anew, no reasoning."""
    calls = [
        {"id": "call_0", "type": "function", "function": {"name": made.name, "arguments": compact(made.arguments)}}
        for made in turn.answer.tool_calls
    ]
    assert calls
    answer = {"role": "assistant", "content": turn.answer.content or None, "tool_calls": calls}
    return [*FIRST, answer, {"role": "tool", "tool_call_id": "call_0", "content": result}]


FIRST = [{"role": "system", "content": "You look at things."}, {"role": "user", "content": "What is it?"}]


def compact(arguments: str) -> str:
    return json.dumps(json.loads(arguments), separators=(",", ":"))


@pytest.mark.parametrize(("template", "reaches"), [(TERSE, "the answer's end"), (CHATML, "the answer's beginning")])
def test_an_agents_next_turn_runs_what_is_new_and_less_than_a_block(
    tmp_path: Path, template: str, reaches: str
) -> None:
    """Where the template writes a call as the model did, also the call is known; CHATML begins it with a line."""

    async def agent(service: ModelService) -> None:
        called = {"tool_choice": {"type": "function", "function": {"name": "look"}}, "temperature": 0.0}
        (first,) = await heard(service, Question(FIRST, tools=LOOKING, options=called))
        told = first.told
        known = told.prompt_tokens + (told.completion_tokens if reaches == "the answer's end" else 0)
        for result in ("It is high above.", "It is high and low."):  # the second is an edit of the first
            question = Question(conversation(first, result), tools=LOOKING, options={"max_tokens": 1})
            second = (await heard(service, question))[0].told
            assert second.cached_tokens >= (known - 1) // BLOCK * BLOCK
            before, _, after = service._tokenizer.decode(service._renderer.render([question])[0].prompt).partition(
                " above"
            )
            known = len(service._tokenizer.encode(before, add_special_tokens=False)) if after else known

    loaded = load(tiny_folder(tmp_path / "m", template=template, max_position_embeddings=4096))
    run(service(loaded), agent)


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


def test_tokens_are_counted_without_an_answer(scripted: tuple[CausalLM, Tokenizer]) -> None:
    async def counting(service: ModelService) -> tuple[int, int]:
        question = user("?", tools=TOOLS)
        counted = await service.count_tokens(question)
        with pytest.raises(RequestError):
            await service.count_tokens(Question())
        return counted, (await heard(service, question))[0].told.prompt_tokens

    counted, told = run(service(scripted), counting)
    assert counted == told
