"""`Writer`: the answers that are being written, as tokens of their jobs. For the engine's thread."""

import math
from collections.abc import Callable, Iterator, Sequence

import mlx.core as mx

from ...cache import PrefixStore
from ...generation import BatchAnswer, BatchAnswers, GenerationChunk
from ...models import CausalLM
from ...tokenizer import Tokenizer
from ..errors import RequestError, failure
from ..question import Progress, TokenLogprob
from .admission import Held
from .jobs import Delivery, Job, Piece, PromptRead


class EngineError(Exception):
    """The model itself failed: what it holds is not to be trusted."""


class Writer:
    """Writes the answers to jobs with one model, `step` by `step`; each owner's prefixes in a store of their own."""

    def __init__(
        self,
        model: CausalLM,
        tokenizer: Tokenizer,
        store: PrefixStore | None,
        *,
        max_rows: int,
        chunk_seconds: float,
        on_layer: Callable[[], None],
    ) -> None:
        """The arguments are those of `BatchAnswers`; in `on_layer`, jobs may be ended."""
        self._tokenizer, self._store = tokenizer, store
        self._stores: dict[str, PrefixStore] = {}
        self._answers = BatchAnswers(
            model, tokenizer, max_rows=max_rows, chunk_seconds=chunk_seconds, on_layer=on_layer
        )
        self._rows: dict[BatchAnswer, tuple[Job, int]] = {}
        self._unread: dict[BatchAnswer, int] = {}  # whose progress is told, with the tokens that were read when it was

    @property
    def rows(self) -> int:
        """Answers that are not over."""
        return len(self._rows)

    @property
    def jobs(self) -> list[Job]:
        """Those that are not over, in the order in which they were begun."""
        return list(dict.fromkeys(job for job, _ in self._rows.values()))

    @property
    def held(self) -> Held:
        rows, store = self._answers.nbytes, self._store
        return Held(rows) if store is None else Held(rows, store.nbytes, store.max_bytes)

    def begin(self, job: Job) -> None:
        """Begin all answers of a job, or none. Raises what `BatchAnswers.add` raises."""
        store, begun = self._store_of(job.owner), list[BatchAnswer]()
        try:
            for question in job.questions:
                begun.append(self._answers.add(question.prompt, store=store, **question.options))
        except Exception:
            self._answers.remove(*begun)
            raise
        self._rows |= {answer: (job, index) for index, answer in enumerate(begun)}
        self._unread |= {answer: 0 for answer, asked in zip(begun, job.questions, strict=True) if asked.tells_progress}
        job.open = len(begun)

    def end(self, job: Job, index: int | None = None) -> None:
        """Let go of what a job holds, or one of its answers."""
        rows = [answer for answer, row in self._rows.items() if row[0] is job and index in (None, row[1])]
        for answer in rows:
            del self._rows[answer]
            self._unread.pop(answer, None)
        job.open -= len(rows)
        job.is_over = not job.open
        self._answers.remove(*rows)

    def step(self) -> Delivery:
        """What comes next of all answers; an error ends its job. EngineError if it was not one answer's fault."""
        failures = self._answers.failures
        made = self._answers.step()
        if self._answers.failures > failures:
            raise EngineError from next((what for _, what in made if isinstance(what, Exception)), None)
        told = [told for answer, what in made if (told := self._told(answer, what)) is not None]
        return [*told, *self._progress()]

    def flush(self) -> None:
        """Wait until the disk has all prefixes that it shall have."""
        if self._store is not None:
            self._store.flush()

    def _store_of(self, owner: str) -> PrefixStore | None:
        if self._store is not None and owner not in self._stores:
            self._stores[owner] = self._store.for_owner(owner)
        return self._stores.get(owner)

    def _progress(self) -> Iterator[tuple[Job, PromptRead]]:
        """How far prompts are read, of which there is more than there was."""
        for answer, before in list(self._unread.items()):
            request, (job, index) = answer.request, self._rows[answer]
            if request.read_tokens > before:
                self._unread[answer] = request.read_tokens
                progress = Progress(len(request.prompt), request.cached_tokens, request.read_tokens)
                yield job, PromptRead(index, progress)
            if request.read_tokens == len(request.prompt):
                del self._unread[answer]

    def _told(self, answer: BatchAnswer, what: GenerationChunk | Exception) -> tuple[Job, Piece | RequestError] | None:
        if answer not in self._rows:  # its job has ended with another of its answers
            return None
        job, index = self._rows[answer]
        if isinstance(what, Exception):
            self.end(job)
            return job, failure(what)
        if what.finish_reason:
            self.end(job, index)
        return job, self._piece(index, what, job.questions[index].top_logprobs)

    def _piece(self, index: int, chunk: GenerationChunk, top: int | None) -> Piece:
        return Piece(
            index,
            chunk.token,
            chunk.text,
            prompt_tokens=chunk.prompt_tokens,
            cached_tokens=chunk.cached_tokens,
            generation_tokens=chunk.generation_tokens,
            finish_reason=chunk.finish_reason,
            stop=chunk.stop,
            violation=chunk.violation,
            logprob=None if top is None else self._logprob(chunk, top),
        )

    def _logprob(self, chunk: GenerationChunk, top: int) -> TokenLogprob:
        """A token's log-probability and those of the likeliest in its place; arrays are for this thread alone."""
        values, told = chunk.logprobs, list[TokenLogprob]()
        if top:
            likeliest = mx.argpartition(-values, kth=min(top, values.size) - 1)[:top]
            tokens: list[int] = likeliest.tolist()  # type: ignore[assignment]
            logprobs: list[float] = values[likeliest].tolist()  # type: ignore[assignment]
            pairs = sorted(zip(tokens, logprobs, strict=True), key=lambda pair: -pair[1])
            told = [self._told_of(token, logprob) for token, logprob in pairs if logprob > -math.inf]
        return self._told_of(chunk.token, float(values[chunk.token]), told)

    def _told_of(self, token: int, logprob: float, top: Sequence[TokenLogprob] = ()) -> TokenLogprob:
        return TokenLogprob(token, self._tokenizer.token_bytes(token), logprob, top)
