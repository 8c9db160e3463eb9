"""What every causal language model here does around its layers: inputs, alignment, head and loss."""

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..cache import Cache
from ..device import is_cpu
from ..errors import InputError
from .chunk import Chunk
from .config import ModelConfig
from .decode import LONGEST_STEP, DecodeStep
from .inputs import causal_loss, keep, last_columns, shape_of, wants_all
from .layered import LayeredModel
from .linear import Linear
from .moe import sorts
from .recompute import recomputed
from .rope import Rope
from .rows import RowStep
from .trace import Trace


class CausalLM(LayeredModel):
    """Base of the model classes; a subclass provides `model` (embed_tokens, layers), `final_norm` and `layer_cache`."""

    compiles_decode: bool
    """Whether steps of one or a few tokens with a cache run through compiled parts, of all of whose tokens the logits
    are asked for; by default where the device compiles at once."""
    takes_rows = False
    """Whether layers take one token a row as (B, D), too: MLX flattens (B, 1, D) before each product, and back."""

    def __init__(self, config: ModelConfig, model: nn.Module, rope: Rope) -> None:
        super().__init__(config, model)
        self._rope = rope
        self.compiles_decode = not is_cpu()
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)

    def embed(self, input_ids: mx.array) -> mx.array:
        """(B, L) ids -> (B, L, D), what `inputs_embeds` takes."""
        return self.model.embed_tokens(input_ids)

    def final_norm(self, h: mx.array) -> mx.array:
        raise NotImplementedError

    def __call__(
        self,
        input_ids: mx.array | None = None,
        cache: Cache | None = None,
        *,
        attention_mask: mx.array | None = None,
        inputs_embeds: mx.array | None = None,
        position_ids: mx.array | None = None,
        logits_to_keep: int | mx.array | None = 0,
        labels: mx.array | None = None,
        trace: Trace | None = None,
    ) -> Any:
        """Logits (B, L, vocab) of the tokens `input_ids` (B, L), or of their embeddings (B, L, D).

        Ids are not checked, for that would wait for the device: they must be below the vocabulary's size.
        attention_mask: (B, L), 0 at padding; with a cache, padding is allowed in the first chunk alone.
        position_ids: (B, L) or (1, L) rotary positions, instead of those that follow from the cache; they never split
        a row into several sequences.
        logits_to_keep: the last n positions alone (0: all), or columns: (n,), or (B, n) for each row its own; None for
        no logits: then the tokens are run for the cache alone, whose `arrays` are to be evaluated, and None returned.
        labels: (B, L), -100 ignored; the result is then (loss, logits), the loss shifted by one and averaged.
        Raises InputError for shapes that do not fit, CacheError for a cache that cannot go on.
        """
        shape = shape_of(input_ids, inputs_embeds, self.config.hidden_size)
        chunk = self.chunk(shape, cache, attention_mask, position_ids)
        is_plain = trace is None and labels is None and chunk.valid is None and input_ids is not None
        is_plain = is_plain and logits_to_keep is not None
        if is_plain and cache is not None and self._compiles(*shape, wants_all=wants_all(logits_to_keep)):
            assert input_ids is not None
            with self._undone_on_failure(shape[1], cache):
                y = self._compiled_step()(input_ids, chunk, cache)
                if self.beyond is not None and (h := self.beyond([y], [chunk], 0)) is not None:
                    y = self.logits(self.final_norm(h))
            return keep(y, logits_to_keep)
        embeddings = inputs_embeds if input_ids is None else self.embed(input_ids)
        if logits_to_keep is None:
            self._run(chunk, embeddings, trace, None)
            return None
        wanted = 0 if chunk.shifts is not None or labels is not None else last_columns(logits_to_keep, chunk.length)
        h = chunk.move(self._last_hidden_state(chunk, embeddings, trace, wanted), back=True)
        logits = self.logits(keep(h, logits_to_keep))
        return logits if labels is None else (causal_loss(logits, labels), logits)

    def last_hidden_state(
        self,
        input_ids: mx.array | None = None,
        cache: Cache | None = None,
        *,
        attention_mask: mx.array | None = None,
        inputs_embeds: mx.array | None = None,
        position_ids: mx.array | None = None,
        trace: Trace | None = None,
    ) -> mx.array:
        """(B, L, D): the final norm's output, of which the head makes the logits; the arguments are those of a call."""
        chunk = self.chunk(
            shape_of(input_ids, inputs_embeds, self.config.hidden_size), cache, attention_mask, position_ids
        )
        embeddings = inputs_embeds if input_ids is None else self.embed(input_ids)
        return chunk.move(self._last_hidden_state(chunk, embeddings, trace, 0), back=True)

    def step(self, input_ids: mx.array, caches: Sequence[Cache]) -> mx.array:
        """Logits (B, vocab) of one more token (B,) in each row of some caches, whose rows follow one another.

        Each row gets what it would get alone. Raises InputError for another number of tokens than of rows, and for
        several caches where layers are beyond.
        """
        if self.beyond is not None:
            if len(caches) != 1:
                raise InputError("a model on several hosts takes one sequence at a time: give one cache")
            return self(input_ids[:, None], cache=caches[0])[:, 0]
        rows = RowStep(caches, self._rope)
        if input_ids.shape != (rows.batch_size,):
            raise InputError(
                f"the tokens have shape {input_ids.shape}: expected ({rows.batch_size},), one for each row"
            )
        with self._undone_on_failure(1, *caches):
            if self._compiles(rows.batch_size, 1):
                return self._compiled_step()(input_ids[:, None], rows, rows)[:, 0]
            h = self._through_layers(self.scaled(self.embed(input_ids[:, None])), rows, rows.layers)
        return self.logits(self.final_norm(h))[:, 0]

    def _undone_on_failure(self, length: int, *caches: Cache | None) -> AbstractContextManager[Any]:
        """Where experts are read, which may fail, the caches are then as they were, whichever layer it was.

        Where layers are beyond, those here are not interrupted either: both take the tokens, or neither does.
        """
        stack = ExitStack()
        if self.beyond is not None:
            stack.enter_context(self.beyond.at_once())
        if self.reads_experts:
            for cache in caches:
                if cache is not None:
                    stack.enter_context(cache.restored_on_failure(length))
        return stack

    def chunk(
        self,
        shape: tuple[int, int],
        cache: Cache | None,
        attention_mask: mx.array | None = None,
        position_ids: mx.array | None = None,
        *,
        ahead: int = 0,
    ) -> Chunk:
        """The positions and masks of a call's tokens (B, L); CacheError for a cache that is not of this model.

        ahead: tokens that are run between those that the whole cache has seen and these.
        """
        if cache is not None:
            self.check_cache(cache)
        options: dict[str, Any] = {"attention_mask": attention_mask, "position_ids": position_ids}
        chunk = Chunk(*shape, self._rope, **options, cache=cache, ahead=ahead)
        self.check(chunk)
        return chunk

    def _last_hidden_state(
        self, chunk: Chunk, embeddings: mx.array | None, trace: Trace | None, wanted: int
    ) -> mx.array:
        """(B, L, D) in the chunk's aligned columns, after the final norm; the arguments are those of `_run`."""
        h = self.final_norm(self._run(chunk, embeddings, trace, wanted))
        if trace is not None:
            trace.add("hidden_states", h)
        return h

    def _run(self, chunk: Chunk, embeddings: mx.array | None, trace: Trace | None, wanted: int | None) -> Any:
        """The last layer's output (B, L, D), in the chunk's aligned columns.

        wanted: where layers are beyond, the last columns to give alone, 0 for all; None for the cache alone.
        """
        assert embeddings is not None
        if trace is not None and self.beyond is not None:
            raise InputError("a model on several hosts keeps no trace: load it on one")
        cache = chunk.cache
        caches = [None] * len(self.model.layers) if cache is None else cache.layers
        with self._undone_on_failure(chunk.length, cache):
            h = self._through_layers(chunk.move(self.scaled(embeddings)), chunk, caches, trace)
            return h if self.beyond is None else self.beyond([h], [chunk], wanted)

    def _through_layers(
        self, h: mx.array, chunk: Chunk | RowStep, caches: Sequence[Any], trace: Trace | None = None
    ) -> mx.array:
        """Scaled embeddings (B, L, D), or the output of the layers before, -> the last layer's output."""
        for layer, cache in zip(self.model.layers, caches, strict=True):
            if trace is not None:
                trace.add("hidden_states", h)
            step = partial(_through_layer, layer, chunk=chunk, cache=cache, trace=trace)
            h = recomputed(layer, step)(h) if self.recomputes else step(h)
        return h

    def part_of(self, h: mx.array, chunk: Chunk) -> mx.array:
        """What the layers here make of the output (B, L, D) of those before them, in the chunk's aligned columns."""
        cache = chunk.cache
        if cache is not None and chunk.valid is None and self._compiles(*h.shape[:2]):
            return self._compiled_step()(h, chunk, cache)
        return self._through_layers(h, chunk, [None] * len(self.model.layers) if cache is None else cache.layers)

    def check(self, chunk: Chunk) -> None:
        """Refuse a chunk that the reference itself does not compute consistently."""

    def logits(self, h: mx.array) -> mx.array:
        """(…, D) -> (…, vocab)."""
        if "lm_head" in self:
            return self.lm_head(h)
        return self.model.embed_tokens.as_linear(h)

    def embed_step(self, inputs: mx.array) -> mx.array:
        """(B, L) ids -> what the first layer of a compiled step takes: (B, L, D), or (B, D) if it takes rows.

        inputs: hidden states (B, L, D), where layers were before.
        """
        x = inputs[:, 0] if self.takes_rows and inputs.shape[1] == 1 else inputs
        return x if self.part.start else self.scaled(self.embed(x))

    def head_step(self, h: mx.array) -> mx.array:
        """The last layer's output of a compiled step, (B, L, D) or (B, D) -> logits (B, L, vocab).

        Where it is not the model's last, that output (B, L, D).
        """
        y = self.logits(self.final_norm(h)) if len(self.part) == self.config.num_hidden_layers else h
        return y[:, None] if h.ndim == 2 else y

    def _compiles(self, rows: int, length: int, *, wants_all: bool = True) -> bool:
        """Whether a chunk runs compiled: a token a row, or few of all of which the logits are wanted, as of a draft."""
        config = self.config
        pairs = rows * length * (config.num_experts_per_tok + getattr(config, "num_shared_experts", 0))
        if not self.compiles_decode or (is_cpu() and sorts(pairs, config.num_experts)):
            return False  # the CPU then runs expert by expert, and the host reads which
        return length == 1 or (length <= LONGEST_STEP and wants_all)

    def _compiled_step(self) -> DecodeStep:
        """The compiled parts, made when first needed, and anew when any module of the model has been replaced."""
        own = [module for name, module in (*self.model.items(), *self.items()) if name not in ("layers", "model")]
        ends = [module for module in own if isinstance(module, nn.Module)]
        step = self._decode_step
        if step is None or not step.is_of(self.model.layers, ends):
            outer = copy.copy(self)  # no cycle: a model that is dropped frees its memory at once
            outer.model = copy.copy(self.model)
            outer._decode_step = None
            del outer.model["layers"]
            step = self._decode_step = DecodeStep(self.model.layers, outer, ends)
        return step

    def scaled(self, h: mx.array) -> mx.array:
        """Embeddings (B, L, D) as the first layer takes them, in the model's dtype."""
        # cast last: embeddings in mxfp4 and its like come out in bfloat16, and mlx-lm scales them there
        return self.scale_embeddings(h).astype(self.dtype)

    def scale_embeddings(self, h: mx.array) -> mx.array:
        """What is done to embeddings before the first layer."""
        return h


def _through_layer(
    layer: Any, h: mx.array, *, chunk: Chunk | RowStep, cache: Any = None, trace: Trace | None = None
) -> mx.array:
    projected = layer.project(h, chunk.place, chunk.valid)
    return layer.finish(h, layer.attend(projected, chunk, cache, trace), trace)
