"""`Student`: a quantized model whose scales, biases and norms are learned, while its codes stay.

It consists of parts: each decoder layer, and what stands around the layers. A step goes through them forwards, keeping
the hidden states between them, and backwards, where each is run again for its gradients. So the plain weights and their
gradients are in memory for one part at a time.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from ..conversion.encoder import QUANTIZED, dequantized, join, modules
from ..conversion.plan import Group
from ..conversion.recipe import Format, is_router
from ..models import ModelConfig, make_model
from ..models.layers import RMSNorm
from .layer import run_layer
from .original import fill

# Logits (tokens, vocab) that are held at a time, of each of the two models.
LOGITS = 1 << 23

Arrays = dict[str, mx.array]
Formats = Mapping[str, Format | None]
# Hidden states (…, D) after the final norm -> the original's logits (…, vocab).
Head = Callable[[mx.array], mx.array]
# Takes gradients, by the names of the values.
Update = Callable[[Arrays], None]


def learned_names(model: nn.Module, formats: Formats) -> list[str]:
    """What is learned: scales and biases of affine formats, and norms' weights; nothing of a router."""
    names = []
    for path, module in model.named_modules():
        chosen = formats.get(path)
        if chosen is not None and chosen["mode"] == "affine" and not is_router(path):
            names += [join(path, "scales"), join(path, "biases")]
        elif isinstance(module, RMSNorm):
            names.append(join(path, "weight"))
    return names


@dataclass(frozen=True)
class Lesson:
    """Rows of the text, and what the original makes of them."""

    ids: mx.array
    """(B, L)"""
    normed: mx.array
    """(B, L, D) float32, of which its head makes logits."""


class Part:
    """Modules whose plain weights are made of stored codes and of values that are learned."""

    def __init__(
        self,
        module: nn.Module,
        prefix: str,
        tensors: Sequence[str],
        learned: Collection[str],
        formats: Formats,
        read: Callable[[str], mx.array],
    ) -> None:
        """prefix: of the module's names. tensors: as stored, of which `read` gives those that are not learned."""
        self._module, self._prefix, self._formats, self._read = module, prefix, formats, read
        self._tensors = modules(tensors)
        self._learned = [name for name in tensors if name in learned]
        self._codes: Arrays = {}

    @contextmanager
    def opened(self, values: Arrays) -> Iterator[Arrays]:
        """Inside, the modules have their weights, read from disk; those that are learned, in plain float32, by name."""
        blank = tree_flatten(self._module.parameters())
        try:
            fill(self._module, self._fixed(), self._prefix)
            plain = self._plain(values)
            mx.eval(plain)
            fill(self._module, plain, self._prefix)
            yield plain
        finally:
            self._module.update(tree_unflatten(blank))
            self._codes = {}

    def backward(
        self, function: Callable[[mx.array], mx.array], plain: Arrays, x: mx.array, cotangent: mx.array
    ) -> tuple[mx.array, Arrays, mx.array]:
        """What a function of the modules makes of x; the gradients of the plain weights, and of x."""

        def run(x: mx.array, *weights: mx.array) -> list[mx.array]:
            fill(self._module, dict(zip(plain, weights, strict=True)), self._prefix)
            return [function(x)]

        (y,), (of_x, *gradients) = mx.vjp(run, [x, *plain.values()], [cotangent])
        return y, dict(zip(plain, gradients, strict=True)), of_x

    def gradients(self, values: Arrays, of_plain: Arrays) -> Arrays:
        """The gradients of the values, by those of the plain weights."""

        def run(*learned: mx.array) -> list[mx.array]:
            return [*self._plain(dict(zip(self._learned, learned, strict=True))).values()]

        _, found = mx.vjp(run, [values[name] for name in self._learned], [*of_plain.values()])
        return dict(zip(self._learned, found, strict=True))

    def _plain(self, values: Arrays) -> Arrays:
        made: Arrays = {}
        for name in self._learned:
            path, _, kind = name.rpartition(".")
            if kind == "weight":
                made[name] = values[name]
            elif kind == "scales":
                chosen = self._formats[path]
                assert chosen is not None
                scale = values[name], values[join(path, "biases")]
                weight = mx.dequantize(self._codes[path], *scale, chosen["group_size"], chosen["bits"])
                made[join(path, "weight")] = weight
        return made

    def _fixed(self) -> Arrays:
        """What is not learned, plain; the codes of what is are kept beside."""
        fixed: Arrays = {}
        for path, kinds in self._tensors.items():
            stored = {kind: self._read(join(path, kind)) for kind in kinds if join(path, kind) not in self._learned}
            chosen = self._formats.get(path)
            if chosen is not None and "scales" not in stored:
                self._codes[path] = stored.pop("weight")
            elif chosen is not None:
                stored["weight"] = dequantized(stored, chosen)
            rest = {kind: array for kind, array in stored.items() if kind == "weight" or kind not in QUANTIZED}
            fixed |= {join(path, kind): array for kind, array in rest.items()}
        return fixed


class Student:
    """The quantized model."""

    def __init__(
        self, config: ModelConfig, groups: Sequence[Group], formats: Formats, read: Callable[[str], mx.array]
    ) -> None:
        """groups: of the conversion's plan. read: a stored tensor by name, anew each time; not what is learned."""
        self._model = make_model(config)  # its weights are never made, but for those of the part at hand
        self._model.eval()
        learned = set(learned_names(self._model, formats))
        around = [name for group in groups if group.index is None for name in group.tensors]
        self._around = Part(self._model, "", around, learned, formats, read)
        self._layers = [
            Part(self._model.model.layers[g.index], f"model.layers.{g.index}.", g.tensors, learned, formats, read)
            for g in groups
            if g.index is not None
        ]
        self._runs = [partial(self._run, layer) for layer in self._model.model.layers]

    def divergence(self, values: Arrays, lessons: Sequence[Lesson], head: Head) -> float:
        """The mean over all tokens of KL(original ‖ student), in nats."""
        hidden = self._embedded(values, lessons)
        for part, run in zip(self._layers, self._runs, strict=True):
            with part.opened(values):
                hidden = _evaluated(run, hidden)
        total = 0.0
        with self._around.opened(values):
            for h, normed in self._pieces(hidden, lessons):
                total += float(divergence(head(normed), self._logits(h)).sum())
        return total / count(lessons)

    def learn(self, values: Arrays, lessons: Sequence[Lesson], head: Head, update: Update) -> None:
        """Call `update`, which may change the values, with the gradients of the `divergence`, part after part."""
        states = [self._embedded(values, lessons)]
        for part, run in zip(self._layers, self._runs, strict=True):
            with part.opened(values):
                states.append(_evaluated(run, states[-1]))
        slopes, around = self._from_logits(values, states.pop(), lessons, head)
        for part, run in zip(reversed(self._layers), reversed(self._runs), strict=True):
            total: Arrays = {}
            with part.opened(values) as plain:
                for i, h in enumerate(states.pop()):
                    _, gradients, slopes[i] = part.backward(run, plain, h, slopes[i])
                    _add(total, gradients, slopes[i])
                update(part.gradients(values, total))
        total = {}
        with self._around.opened(values) as plain:
            for lesson, slope in zip(lessons, slopes, strict=True):
                run = partial(self._embed, lesson.ids)
                _, gradients, _ = self._around.backward(run, plain, mx.zeros(()), slope)
                _add(total, gradients)
            _add(around, self._around.gradients(values, total))
        update(around)

    def _from_logits(
        self, values: Arrays, hidden: Sequence[mx.array], lessons: Sequence[Lesson], head: Head
    ) -> tuple[list[mx.array], Arrays]:
        """The gradients of the last layer's outputs, and of the values after them."""
        total: Arrays = {}
        slopes: list[mx.array] = []
        one = mx.array(1 / count(lessons))
        with self._around.opened(values) as plain:
            for h, normed in self._pieces(hidden, lessons):
                target = head(normed)
                run = partial(self._loss, target)
                _, gradients, slope = self._around.backward(run, plain, h, one)
                _add(total, gradients, slope)
                slopes.append(slope)
            found = self._around.gradients(values, total)
            mx.eval(found)
        flat, sizes = mx.concatenate(slopes), [lesson.ids.size for lesson in lessons]
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)]
        return [s.reshape(h.shape) for s, h in zip(mx.split(flat, ends), hidden, strict=True)], found

    def _embedded(self, values: Arrays, lessons: Sequence[Lesson]) -> list[mx.array]:
        with self._around.opened(values):
            return _evaluated(lambda ids: self._embed(ids), [lesson.ids for lesson in lessons])

    def _embed(self, ids: mx.array, _: mx.array | None = None) -> mx.array:
        return self._model.scaled(self._model.embed(ids))

    def _run(self, layer: nn.Module, h: mx.array) -> mx.array:
        return run_layer(layer, h, self._model._rope)

    def _logits(self, h: mx.array) -> mx.array:
        return self._model.logits(self._model.final_norm(h))

    def _loss(self, target: mx.array, h: mx.array) -> mx.array:
        return divergence(target, self._logits(h)).sum()

    def _pieces(self, hidden: Sequence[mx.array], lessons: Sequence[Lesson]) -> Iterator[tuple[mx.array, mx.array]]:
        """Hidden states (N, D) of the student and of the original, as many as LOGITS allows."""
        step = max(LOGITS // self._model.config.vocab_size, 1)
        for h, lesson in zip(hidden, lessons, strict=True):
            width = h.shape[-1]
            for start in range(0, lesson.ids.size, step):
                rows = slice(start, start + step)
                yield h.reshape(-1, width)[rows], lesson.normed.reshape(-1, width)[rows]


def divergence(reference: mx.array, logits: mx.array) -> mx.array:
    """KL(reference ‖ model) in nats of logits (N, vocab): (N,)."""
    log_p = reference - mx.logsumexp(reference, axis=-1, keepdims=True)
    log_q = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    return (mx.exp(log_p) * (log_p - log_q)).sum(axis=-1)


def count(lessons: Sequence[Lesson]) -> int:
    """Their tokens."""
    return sum(lesson.ids.size for lesson in lessons)


def _evaluated(run: Callable[[mx.array], mx.array], inputs: Sequence[mx.array]) -> list[mx.array]:
    made = []
    for x in inputs:
        made.append(run(x))
        mx.eval(made[-1])
    return made


def _add(total: Arrays, found: Arrays, *others: mx.array) -> None:
    """Add arrays up by name, and evaluate them with the others, so that what they are made of is dropped."""
    for name, array in found.items():
        total[name] = total[name] + array if name in total else array
    mx.eval(total, *others)
