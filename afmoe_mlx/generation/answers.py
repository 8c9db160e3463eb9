"""`BatchAnswers`: answers to several prompts at once, each in chunks, as `stream_generate` gives them."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from .. import device
from ..cache import KVQuantization, PrefixStore
from ..errors import OptionError
from ..models import CausalLM
from ..tokenizer import Tokenizer
from .batch import CHUNK_SECONDS, MAX_ROWS, BatchEngine
from .chunks import AnswerChunks, GenerationChunk
from .drafts import NUM_DRAFT_TOKENS, DraftModel, make_drafter
from .grammar import CONSTRAINT
from .guide import AnswerGuide
from .lone import LoneRow
from .plan import Plan
from .prompt import Prompt
from .requests import Event, Request
from .rows import Choice, RowChooser
from .speculate import Tally
from .stream import check_options

# Options of `stream_generate` for one prompt alone.
ALONE = {"cache", "seen", "on_progress", "prefill_step_size"}

# Options of an answer that `check_options` does not know, or that a `Plan` checks as well.
UNCHECKED = {"sampler", "logits_processors", "skip_special_tokens", "rules", *CONSTRAINT}


@dataclass
class BatchStats:
    """What was done for several answers, in mlx-lm's words; times are in seconds.

    A step either gives tokens, maybe with parts of prompts read beside them, or it reads prompts alone: `decode_time`
    is that of the former, `prompt_time` that of the latter.
    """

    prompt_tokens: int = 0
    """Of prompts that were read, but for what a store knew."""
    lone_prompt_tokens: int = 0
    """Those read while no answer was being written."""
    prompt_time: float = 0.0
    generation_tokens: int = 0
    generation_steps: int = 0
    decode_time: float = 0.0
    wall_time: float = 0.0
    """From the first step to the last."""
    peak_memory: float = 0.0
    """In GB, of the process."""

    @property
    def prompt_tps(self) -> float:
        """Prompt tokens a second, while no answer was being written."""
        return self.lone_prompt_tokens / max(self.prompt_time, 1e-9)

    @property
    def generation_time(self) -> float:
        """All but `prompt_time`."""
        return max(self.wall_time - self.prompt_time, 0.0)

    @property
    def generation_tps(self) -> float:
        """Tokens a second of all answers, prompts read beside them included."""
        return self.generation_tokens / max(self.generation_time, 1e-9)

    @property
    def decode_tps(self) -> float:
        """The same of the steps alone, without what was done with the tokens."""
        return self.generation_tokens / max(self.decode_time, 1e-9)

    @property
    def overhead_time(self) -> float:
        """What was taken by neither prompts nor steps."""
        return max(self.wall_time - self.prompt_time - self.decode_time, 0.0)


@dataclass(eq=False)
class BatchAnswer:
    """One of several answers: a handle, made by `BatchAnswers.add`."""

    request: Request
    guide: AnswerGuide | None
    chunks: AnswerChunks
    tally: Tally
    _counted: int = 0

    @property
    def prompt(self) -> list[int]:
        """Its token ids."""
        return self.request.prompt

    def read(self) -> int:
        """How many tokens of the prompt have been run since the last call."""
        before, self._counted = self._counted, self.request.read_tokens - self.request.cached_tokens
        return self._counted - before


class BatchAnswers:
    """Answers to several prompts at once: `add` them at any time, then `step` until there are none.

    max_rows: how many are written at once; the others wait. prefill_step_size, store: as for `stream_generate`.
    chunk_seconds: how long those that are written may be delayed by prompts at each step. on_layer: called between the
    layers of a prompt where experts are read, when `remove` may leave it. It is for one thread, which has the model to
    itself.
    """

    def __init__(
        self,
        model: CausalLM,
        tokenizer: Tokenizer,
        *,
        max_rows: int = MAX_ROWS,
        prefill_step_size: int | None = None,
        chunk_seconds: float = CHUNK_SECONDS,
        store: PrefixStore | None = None,
        on_layer: Callable[[], None] | None = None,
    ) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._engine = BatchEngine(
            model,
            RowChooser(),
            max_rows=max_rows,
            prefill_step_size=prefill_step_size,
            chunk_seconds=chunk_seconds,
            store=store,
            on_layer=on_layer,
        )
        self._answers: dict[Request, BatchAnswer] = {}
        self._waiting: list[BatchAnswer] = []
        self._reading: list[BatchAnswer] = []  # begun, without a token yet
        self._began: float | None = None
        self.stats = BatchStats()

    def __len__(self) -> int:
        """Answers that are not over."""
        return len(self._answers)

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values held."""
        return self._engine.nbytes

    @property
    def failures(self) -> int:
        """How often the model itself or the choice of tokens failed, rather than what one answer was asked for."""
        return self._engine.failures

    def add(
        self,
        prompt: Prompt,
        *,
        store: PrefixStore | None = None,
        kv_bits: int | None = None,
        kv_group_size: int | None = None,
        quantized_kv_start: int = 0,
        prompt_lookup: int | bool | None = None,
        draft_model: CausalLM | DraftModel | None = None,
        num_draft_tokens: int = NUM_DRAFT_TOKENS,
        **options: Any,
    ) -> BatchAnswer:
        """An answer to a prompt, begun by a later `step`.

        store: in place of the one for all.
        prompt_lookup, draft_model, num_draft_tokens: guess while it is the only answer and no other prompt can be
        begun, unless it is held to a constraint or a reasoning budget. options: the others of `stream_generate`, but
        for those of caches and progress; or `rules`, `ConstraintOptions` that are made already, in place of those that
        constrain the answer. Raises what that raises.
        """
        if alone := sorted(options.keys() & ALONE):
            raise OptionError(f"no option {alone[0]} where several prompts are answered at once")
        checked = {name: value for name, value in options.items() if name not in UNCHECKED}
        check_options(prompt_lookup=prompt_lookup, num_draft_tokens=num_draft_tokens, **checked)
        plan = Plan.of(self._model.config, self._tokenizer, prompt, **options)
        kept = None if kv_bits is None else KVQuantization(kv_bits, kv_group_size, quantized_kv_start)
        guide, tally = self._guide(plan), Tally()
        choice = Choice(plan.sampler, plan.processors, guide)
        drafter = make_drafter(
            self._model,
            prompt_lookup=prompt_lookup,
            draft_model=draft_model,
            num_draft_tokens=int(num_draft_tokens),
        )
        request = self._engine.add(
            plan.prompt,
            limit=plan.limit(self._model.config.max_position_embeddings),
            ends=plan.tokenizer.eos_token_ids,
            choose=choice,
            cache=None if kept is None else self._model.make_cache(kv_quantization=kept),
            store=store,
            mark=_first_turn(plan),
            ahead=None if drafter is None or guide is not None else LoneRow(self._model, choice, drafter, tally),
        )
        chunks = plan.chunks(prompt_tokens=len(plan.prompt), limit=request.limit, tally=tally, held=guide)
        answer = self._answers[request] = BatchAnswer(request, guide, chunks, tally)
        self._waiting.append(answer)
        return answer

    def remove(self, *answers: BatchAnswer) -> None:
        """End answers before their time; those that are over stay as they are."""
        self._engine.remove(*(answer.request for answer in answers))
        for answer in answers:
            self._answers.pop(answer.request, None)

    def step(self) -> list[tuple[BatchAnswer, GenerationChunk | Exception]]:
        """The next chunk of every answer that is being written, or what ended it: an error that is its alone.

        There may be several, one after the other, of an answer that is alone and was guessed right, and none while
        prompts are read.
        """
        began = time.perf_counter()
        events = self._engine.step()
        self._count(events, began)
        found: list[tuple[BatchAnswer, GenerationChunk | Exception]] = []
        over: list[BatchAnswer] = []
        for event in events:
            answer = self._answers[event.request]
            if answer in over:  # guessed beyond the end of a text
                continue
            made = self._made_of(event)
            found.append((answer, made))
            if isinstance(made, Exception):
                over.append(answer)
            elif made.finish_reason:
                over.append(answer)
                del event.request.answer[made.generation_tokens :]
        self.stats.generation_tokens += sum(isinstance(made, GenerationChunk) for _, made in found)
        # views, which another thread, that may read them, could not evaluate
        mx.async_eval([made.logprobs for _, made in found if isinstance(made, GenerationChunk)])
        self.remove(*over)
        self._began = began if self._began is None else self._began
        self.stats.wall_time = time.perf_counter() - self._began
        return found

    def _guide(self, plan: Plan) -> AnswerGuide | None:
        budget, vocab_size = plan.budget(plan.prompt), self._model.config.vocab_size
        make = plan.rules.begin(plan.tokenizer, vocab_size, plan.prompt) if plan.rules.is_given else None
        return None if budget is None and make is None else AnswerGuide(vocab_size, budget, make)

    def _made_of(self, event: Event) -> GenerationChunk | Exception:
        answer = self._answers[event.request]
        token, logprobs = event.token, event.logprobs
        if token is None or logprobs is None:
            assert event.error is not None
            return event.error
        try:
            if answer.guide is not None:
                answer.guide.learn(answer.request.answer)
            # each guess that was right has saved a step
            answer.tally.steps = len(answer.request.answer) - 1 - answer.tally.accepted
            answer.chunks.cached_tokens = answer.request.cached_tokens
            return answer.chunks.push(token, logprobs)
        except Exception as error:
            return error

    def _count(self, events: Sequence[Event], began: float) -> None:
        """Count a step that began at that time."""
        stats, seconds = self.stats, time.perf_counter() - began
        if any(answer.request.is_begun for answer in self._waiting[: self._engine.max_rows]):
            begun = [answer for answer in self._waiting if answer.request.is_begun]
            for answer in begun:
                answer.chunks.began = began
            self._reading += begun
            self._waiting = [answer for answer in self._waiting if not answer.request.is_begun]
        read = sum(answer.read() for answer in self._reading)
        self._reading = [answer for answer in self._reading if not (answer.request.answer or answer.request.is_over)]
        stats.prompt_tokens += read
        if events:
            stats.generation_steps += 1
            stats.decode_time += seconds
        else:
            stats.lone_prompt_tokens += read
            stats.prompt_time += seconds
        stats.peak_memory = device.peak_memory() / 1e9


def _first_turn(plan: Plan) -> int:
    """Tokens of a prompt up to the end of its first turn, most often the system prompt; 0 if it has but one."""
    ends = plan.tokenizer.eos_token_ids
    return next((i for i, token in enumerate(plan.prompt, 1) if token in ends), 0)
