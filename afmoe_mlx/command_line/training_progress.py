"""How a training goes: a bar on a terminal, and a line now and then."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..terminal import is_terminal, note, write
from ..training.trainer import Loss
from ..training.training import Event, Options, Stepped, Validated, Wrote


class TrainingLines:
    """The mean loss and speed of the batches since the last line, and what the held-out examples say."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._loss, self._seconds, self._trained = Loss(0.0, 0), 0.0, 0

    def show(self, event: Event) -> None:
        match event:
            case Stepped():
                self._loss, self._seconds = self._loss + event.loss, self._seconds + event.seconds
                if event.step % self._options.steps_per_report == 0 or event.step == self._options.iters:
                    self._report(event)
            case Validated():
                write(f"{event.step:6}: validation loss {event.loss.mean:.3f}\n")
            case Wrote():
                note(f"Saved {event.path}", dim=True)

    def _report(self, event: Stepped) -> None:
        self._trained += self._loss.tokens
        speed = self._loss.tokens / self._seconds
        loss = f"training loss {self._loss.mean:.3f}" if self._loss.tokens else "nothing to learn"
        rate = f"learning rate {event.learning_rate:.3g}"
        write(f"{event.step:6}: {loss}, {rate}, {speed:.0f} tokens/s, {self._trained} tokens\n")
        self._loss, self._seconds = Loss(0.0, 0), 0.0


@contextmanager
def training_progress(options: Options, *, is_shown: bool, begun: int) -> Iterator[Callable[[Event], None]]:
    """What shows the events of a training after `begun` batches; the bar vanishes with the block."""
    if not is_shown:
        yield lambda event: None
        return
    lines = TrainingLines(options)
    if not is_terminal(sys.stderr):
        yield lines.show
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[said]}"))
    bar = Progress(
        *columns,
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=is_terminal(sys.stdout),
    )
    with bar:
        task = bar.add_task("training", total=options.iters, completed=begun, said="")

        def show(event: Event) -> None:
            if isinstance(event, Stepped):
                said = f"loss {event.loss.mean:.3f}, {event.loss.tokens / event.seconds:.0f} tokens/s"
                bar.update(task, completed=event.step, said=said)
            lines.show(event)

        yield show
