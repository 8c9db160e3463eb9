"""`Followers`: the processes that hold the other parts of a model, and how it is noticed that one is lost."""

import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import TimeoutError as NotYetError
from contextlib import suppress
from queue import SimpleQueue
from typing import Protocol, TypeVar

from ..errors import HostError
from ..interrupts import begun
from ..terminal import printable
from .advice import advised
from .hostfile import Host
from .orders import LONGEST_LINE, Answer, Beat, Failed, Order, Reader, answers, to_line
from .process import BEATS, PATIENCE
from .remote import command_for

# Seconds that followers have to end by themselves.
GRACE = 2.0
# Seconds that one may take to say its first word, however short the silence is that is taken for a loss.
STARTING = 30.0
# Seconds in which what is heard of several is told as one.
LAST_WORDS = 0.2
# Bytes of a line on stderr that are read at once, and characters of it that are told.
LONGEST_SAID, TOLD = 1 << 16, 300
# White space, and what an older version draws around an error.
FRAME = " \t\r\n│╭╮╰╯─"

T = TypeVar("T")


class Crew(Protocol):
    """Followers that all do the same orders, in the order in which they are told."""

    def tell(self, order: Order) -> None:
        """Write an order to every follower. HostError if one is lost."""
        ...

    def answers(self) -> Sequence[Answer]:
        """One answer of each follower, in their order, to the last order that has any. HostError if one is lost."""
        ...

    def fail(self, line: str) -> None:
        """End all followers: they are out of step."""
        ...

    def reason(self) -> str | None:
        """Which host was lost, once that is known; None if it does not become so soon."""
        ...

    def end(self) -> None:
        """Let all followers go."""
        ...


def all_of(found: Sequence[Answer], kind: type[T]) -> list[T]:
    """The answers, all of which are of a kind; HostError for another."""
    if wrong := [answer for answer in found if not isinstance(answer, kind)]:
        raise HostError(f"a host answered {type(wrong[0]).__name__}: expected {kind.__name__}")
    return list(found)  # type: ignore[arg-type]


class Followers:
    """A process for each of some hosts.

    silence: seconds after which a host is lost of which nothing is heard, or that has done nothing of what it was told.
    on_lost: called once, in a thread, with a line that names the host; all others have been ended then. Every later
    call raises a HostError with that line.
    """

    def __init__(self, hosts: Sequence[Host], *, silence: float, on_lost: Callable[[str], None]) -> None:
        self._silence, self._on_lost = silence, on_lost
        self._lock, self._ended = threading.Lock(), threading.Event()
        self.lost: str | None = None
        self._is_lost = threading.Event()
        self.is_under_way = False
        """Whether all is loaded: then no order takes long, and one that does is of a host that is lost."""
        self.arrived: Callable[[], None] | None = None
        """Waits for what the last follower has sent."""
        self._looked = 0
        self._processes: list[_Process] = []
        try:
            for host in hosts:
                self._processes.append(_Process(host, command_for(host, silence), self._lose))
        except BaseException:
            self.kill()
            raise
        for process in self._processes:  # now that all are known: one that is lost ends all
            process.begin(silence / BEATS)
        threading.Thread(target=self._watch, daemon=True).start()

    def tell(self, order: Order) -> None:
        for i in range(len(self._processes)):
            self.tell_one(i, order)

    def tell_one(self, i: int, order: Order) -> None:
        """Write an order to one follower."""
        self._check()
        self._processes[i].write(order)

    def answers(self) -> list[Answer]:
        found = [process.answer() for process in self._processes]
        self._check()
        for process, answer in zip(self._processes, found, strict=True):
            if isinstance(answer, Failed):
                self._lose(process.host.name, answer.line)
                self._check()
        return found

    def unanswered(self) -> list[Host]:
        """Those that have not answered what they were asked."""
        return [process.host for process in self._processes if not process.has_answered]

    def fail(self, line: str) -> None:
        with self._lock:
            self.lost = self.lost or line
        self.end()
        self._free(self.lost)

    def reason(self) -> str | None:
        self._is_lost.wait(2 * GRACE)
        return self.lost

    def end(self) -> None:
        """End all processes; those that do not end by themselves are killed."""
        self._ended.set()
        until = time.monotonic() + GRACE
        for process in self._processes:
            process.close(until)
        for process in self._processes:
            process.end(until)

    def kill(self) -> None:
        """End all processes at once."""
        self._ended.set()
        for process in self._processes:
            process.end(0)

    def _check(self) -> None:
        if self.lost is not None:
            raise HostError(self.lost)
        if self._ended.is_set():
            raise HostError("the other hosts are gone, and MLX connects once in a process: start the program again")

    def _watch(self) -> None:
        while not self._ended.wait(self._silence / BEATS):
            for process in self._processes:
                if trouble := process.trouble(self._silence * PATIENCE, is_under_way=self.is_under_way):
                    self._lose(process.host.name, trouble)
            self._look()

    def _look(self) -> None:
        """Whether all that was done has arrived: followers that have sent something know no more of it."""
        told = sum(process.told for process in self._processes)
        if self.arrived is None or not self.is_under_way or told == self._looked:
            return
        if all(process.is_idle(self._silence * PATIENCE) for process in self._processes):
            self._looked = told
            try:
                begun(self.arrived).result(self._silence / BEATS)
            except NotYetError:
                self._lose(self._processes[-1].host.name, f"what it sent {self._silence:.0f} s ago has not arrived")
            except Exception:
                return  # who waits for it sees the error

    def _lose(self, name: str, trouble: str) -> None:
        with self._lock:
            if self.lost is not None or self._ended.is_set():
                return
            self.lost = f"{name} is lost: {printable(' '.join(trouble.split()))}"
        self.kill()
        self._free(self.lost)
        self._on_lost(self.lost)
        self._is_lost.set()

    def _free(self, line: str) -> None:
        """Let nobody wait for an answer."""
        for process in self._processes:
            process.give_up(line)


class _Process:
    """A follower's process, and the threads that read what it writes."""

    def __init__(self, host: Host, command: Sequence[str], lose: Callable[[str, str], None]) -> None:
        self.host, self._lose = host, lose
        self._writing = threading.Lock()
        self._answers: SimpleQueue[Answer] = SimpleQueue()
        self._said: deque[str] = deque(maxlen=5)
        self.told = self._finished = 0
        self._is_over = False
        self._heard = self._moved = time.monotonic()
        self._has_spoken = False
        # a group of its own: Ctrl-C is the leader's to hear, and a stopped one is hung up with the leader's end
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, process_group=0
            )
        except OSError as error:
            raise HostError(f"{host.name} cannot be reached: {command[0]}: {error.strerror}") from None

    def begin(self, beat: float) -> None:
        """Listen to it, and tell it every `beat` seconds that the leader lives."""
        for work in (self._read, self._listen, lambda: self._beat(beat)):
            threading.Thread(target=work, daemon=True).start()

    def write(self, order: Order) -> None:
        """Write an order; one that cannot be written is of a process whose end is noticed where it is read."""
        assert self._process.stdin is not None
        with self._writing, suppress(OSError, ValueError):
            if not isinstance(order, Beat):
                if self.told == self._finished:
                    self._moved = time.monotonic()
                self.told += 1
            self._process.stdin.write(to_line(order).encode())
            self._process.stdin.flush()

    def answer(self) -> Answer:
        return self._answers.get()

    @property
    def has_answered(self) -> bool:
        return not self._answers.empty()

    def give_up(self, line: str) -> None:
        """Let nobody wait for an answer."""
        self._answers.put(Failed(line))

    def is_idle(self, seconds: float) -> bool:
        """Whether it has done all, and has had nothing to do for so long."""
        return self.told == self._finished and time.monotonic() - self._moved > seconds

    def trouble(self, patience: float, *, is_under_way: bool) -> str | None:
        """Why this one is to be taken for lost, if it is."""
        now = time.monotonic()
        quiet = patience if self._has_spoken else max(patience, STARTING)
        if now - self._heard > quiet:
            return f"nothing was heard of it for {quiet:.0f} s"
        if is_under_way and self.told > self._finished and now - self._moved > patience:
            return f"it has done nothing of what it was told for {patience:.0f} s, nor have those before it"
        return None

    def close(self, until: float) -> None:
        """Tell it to end, unless it does not read what it is told till then."""
        assert self._process.stdin is not None
        if self._writing.acquire(timeout=max(until - time.monotonic(), 0)):
            with suppress(OSError):
                self._process.stdin.close()
            self._writing.release()

    def end(self, until: float) -> None:
        """Wait for its end until then, and see to it, and to that of what it started."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(max(until - time.monotonic(), 0))
        if not self._is_over:  # once: its number may be another's later
            self._is_over = True
            with suppress(OSError):  # nothing of it is left
                os.killpg(self._process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(GRACE)

    def _read(self) -> None:
        assert self._process.stdout is not None
        reader = answers()
        try:
            while line := self._process.stdout.readline(LONGEST_LINE):
                self._heard, self._has_spoken = time.monotonic(), True
                answer = self._message(reader, line.decode("utf-8", "replace"))
                if not isinstance(answer, Beat):
                    self._answers.put(answer)
                elif answer.finished > self._finished:
                    self._finished, self._moved = answer.finished, self._heard
                if isinstance(answer, Failed):
                    time.sleep(LAST_WORDS)  # one that ended without a word is the cause, and is told first
                    self._lose(self.host.name, answer.line)
        except (HostError, OSError, ValueError) as error:
            self._lose(self.host.name, str(error))
            return
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(GRACE)
        time.sleep(LAST_WORDS / 4)  # for what it said last
        said = f": {self._said[-1]}" if self._said else ""
        self._lose(self.host.name, advised(f"its process ended ({_status(self._process.returncode)}){said}"))

    @staticmethod
    def _message(reader: Reader[Answer], line: str) -> Answer:
        try:
            return reader.read(line)
        except HostError as error:
            raise HostError(f"{error} It wrote {line.strip()[:60]!r}") from None

    def _listen(self) -> None:
        assert self._process.stderr is not None
        while line := self._process.stderr.readline(LONGEST_SAID):
            text = line.decode("utf-8", "replace").strip(FRAME)
            if any(map(str.isalnum, text)):
                self._said.append(text[:TOLD])

    def _beat(self, seconds: float) -> None:
        # in a thread of its own: a follower that is stopped and reads nothing holds up whoever writes to it
        while self._process.returncode is None:
            self.write(Beat())
            time.sleep(seconds)


def _status(code: int | None) -> str:
    if code is None:
        return "it closed its output"
    return f"signal {-code}" if code < 0 else f"status {code}"
