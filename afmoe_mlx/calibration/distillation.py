"""`Distillation`: the values of a quantized model that are learned, trained to predict what its original does."""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import cast

import mlx.core as mx

from .activations import write_arrays
from .student import Arrays, Formats, Head, Lesson, Student, Update, count

# How often the text is gone through, and its tokens between two steps.
EPOCHS, STEP = 4, 1024
# Of the text, what is not learned from but says which state is best.
HELD_OUT = 0.1
# Adam's: how far the first steps go, in units of what is learned, how many lead up to that, and its two decays.
RATE, WARM_UP, DECAY, SQUARE_DECAY = 1e-3, 10, 0.9, 0.99
# The unit of a norm's weights, as a share of their mean.
NORM_UNIT = 0.3


class Adam:
    """Adam ([Kingma and Ba, 2014](https://arxiv.org/abs/1412.6980)) of values that are changed some at a time."""

    def __init__(self, values: Arrays, units: Mapping[str, mx.array]) -> None:
        """values: float32. units: of what each is changed in, ()."""
        self.values = values
        self.means = {name: mx.zeros_like(array) for name, array in values.items()}
        self.squares = {name: mx.zeros_like(array) for name, array in values.items()}
        self.steps = 0
        self._units = units

    def step(self, rate: float) -> Update:
        """Begin a step of so many units at the most, about: what takes the gradients."""
        self.steps += 1
        return partial(self._update, rate)

    def _update(self, rate: float, gradients: Arrays) -> None:
        for name, gradient in gradients.items():
            unit = self._units[name]
            gradient = gradient * unit
            mean = DECAY * self.means[name] + (1 - DECAY) * gradient
            square = SQUARE_DECAY * self.squares[name] + (1 - SQUARE_DECAY) * mx.square(gradient)
            size = mx.sqrt(square / (1 - SQUARE_DECAY**self.steps)) + 1e-12
            self.values[name] = self.values[name] - rate * unit * mean / (1 - DECAY**self.steps) / size
            self.means[name], self.squares[name] = mean, square
        names = gradients.keys()
        mx.eval([[arrays[name] for name in names] for arrays in (self.values, self.means, self.squares)])


def units_of(initial: Mapping[str, mx.array], formats: Formats) -> Arrays:
    """A scale's is the mean scale of its tensor, a bias's that of half of the codes, a norm's a share of its mean."""
    units = {}
    for name, array in initial.items():
        path, _, kind = name.rpartition(".")
        if kind == "biases":
            chosen = formats[path]
            assert chosen is not None
            unit = mx.abs(initial[f"{path}.scales"].astype(mx.float32)).mean() * 2 ** (chosen["bits"] - 1)
        else:
            unit = mx.abs(array.astype(mx.float32)).mean() * (1 if kind == "scales" else NORM_UNIT)
        units[name] = unit
    mx.eval(units)
    return units


class Distillation:
    """Training whose state is in a file after each epoch, so that a process that is killed loses one at the most."""

    def __init__(self, student: Student, head: Head, lessons: Sequence[Lesson], path: Path, seed: int) -> None:
        """lessons: of at most STEP tokens each, but for single rows. path: of the state. seed: of their order."""
        shuffled = list(lessons)
        random.Random(seed).shuffle(shuffled)
        held, left = 0, HELD_OUT * count(lessons)
        while left > 0 and held + 1 < len(shuffled):
            left -= shuffled[held].ids.size
            held += 1
        self._held, self._lessons = shuffled[:held] or shuffled, shuffled[held:]
        self._student, self._head, self._path, self._seed = student, head, path, seed

    def run(self, initial: Arrays, formats: Formats, on_step: Callable[[int, int], None]) -> Arrays:
        """Of all states, the initial one among them, the one that is nearest to the original on what is held out.

        initial: in the dtypes that they are stored in, as the result is. on_step: called with the tokens that were
        learned from and those that will be.
        """
        adam = Adam({name: array.astype(mx.float32) for name, array in initial.items()}, units_of(initial, formats))
        done_before, best, least = self._restore(adam)
        if done_before == 0:
            best, least = initial, self._divergence(initial)
        tokens = count(self._lessons)
        for epoch in range(done_before, EPOCHS):
            done = 0
            for lessons in self._steps(epoch):
                rate = RATE * min(1.0, (adam.steps + 1) / WARM_UP) * _falling((epoch + done / tokens) / EPOCHS)
                self._student.learn(adam.values, lessons, self._head, adam.step(rate))
                mx.clear_cache()  # rows of other lengths have no use for it
                done += count(lessons)
                on_step(epoch * tokens + done, EPOCHS * tokens)
            stored = {name: array.astype(initial[name].dtype) for name, array in adam.values.items()}
            if (found := self._divergence(stored)) < least:
                best, least = stored, found
            self._save(adam, epoch + 1, best, least)
        return best

    def _divergence(self, stored: Arrays) -> float:
        values = {name: array.astype(mx.float32) for name, array in stored.items()}
        return self._student.divergence(values, self._held, self._head)

    def _steps(self, epoch: int) -> list[list[Lesson]]:
        """All lessons in an order of this epoch's own, as many together as make STEP tokens."""
        order = list(self._lessons)
        random.Random(f"{self._seed} {epoch}").shuffle(order)
        steps: list[list[Lesson]] = [[]]
        for lesson in order:
            if count(steps[-1]) + lesson.ids.size > STEP and steps[-1]:
                steps.append([])
            steps[-1].append(lesson)
        return steps

    def _save(self, adam: Adam, epoch: int, best: Arrays, least: float) -> None:
        parts = {"value": adam.values, "mean": adam.means, "square": adam.squares, "best": best}
        arrays = {f"{part}/{name}": array for part, named in parts.items() for name, array in named.items()}
        write_arrays(self._path, arrays, {"epoch": str(epoch), "steps": str(adam.steps), "least": repr(least)})

    def _restore(self, adam: Adam) -> tuple[int, Arrays, float]:
        """The epochs that are done, the best state and its divergence; nothing if there is no file."""
        if not self._path.exists():
            return 0, {}, math.inf
        arrays, metadata = cast(tuple[Arrays, dict[str, str]], mx.load(str(self._path), return_metadata=True))
        mx.eval(arrays)
        parts: dict[str, Arrays] = {}
        for name, array in arrays.items():
            part, _, rest = name.partition("/")
            parts.setdefault(part, {})[rest] = array
        adam.values, adam.means, adam.squares = parts["value"], parts["mean"], parts["square"]
        adam.steps = int(metadata["steps"])
        return int(metadata["epoch"]), parts["best"], float(metadata["least"])


def _falling(progress: float) -> float:
    """From 1 to 0 as progress goes from 0 to 1, along half a cosine."""
    return (1 + math.cos(math.pi * progress)) / 2
