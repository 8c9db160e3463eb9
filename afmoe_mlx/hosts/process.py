"""`FollowerProcess`: a process that does what its stdin says, and ends with it.

A thread reads, since the main one may be blocked in MLX for as long as another host is silent: the end of the input, or
silence, ends the process at once.
"""

import gc
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, BinaryIO, NoReturn, TextIO

import mlx.core as mx

from .. import device
from ..checkpoint import load_model
from ..checkpoint.files import read_config_json
from ..checkpoint.hub import resolve_headers
from ..errors import AfmoeError, HostError
from ..footprint import fit_check, own_bandwidth, place_experts
from .follower import Follower
from .identity import digest, samples
from .link import Link
from .orders import (
    LONGEST_LINE,
    Answer,
    Beat,
    Done,
    Facts,
    Failed,
    Hello,
    Join,
    Load,
    Order,
    Probe,
    Unload,
    one_line,
    orders,
    quantization_of,
    to_line,
)
from .ring import connect, free_port, take_part
from .versions import versions

# Of the seconds of silence that are too long: how often each side says that it lives, and after what part of them the
# other gives it up, so that with the time between two looks they are not exceeded.
BEATS, PATIENCE = 8, 0.75

# Seconds that a process which ends has to say why.
LAST_WORDS = 1.0


class FollowerProcess:
    """What is loaded in this process, and the thread that reads its orders.

    locate: the folder, or Hub id, of a model's name. directory: where prefix stores on disk are. silence: seconds
    without a word of the leader after which the process ends.
    """

    def __init__(
        self,
        orders_in: BinaryIO,
        answers_out: TextIO,
        *,
        locate: Callable[[str], str | Path],
        directory: Path,
        silence: float,
    ) -> None:
        self._in, self._out, self._locate = orders_in, answers_out, locate
        self._directory, self._silence = directory, silence
        self._queue: SimpleQueue[Order] = SimpleQueue()
        self._writing = threading.Lock()
        self._heard = time.monotonic()
        self._done = self._finished = 0  # orders; of those that are finished nothing is under way
        self._resident = ExitStack()
        self._hello: Hello | None = None
        self._link: Link | None = None
        self._followers: dict[int, Follower] = {}

    def run(self) -> NoReturn:
        """Do orders until the input ends, which ends the process."""
        for work in (self._read, self._beat):
            threading.Thread(target=work, daemon=True).start()
        try:
            self._follow()
        except Exception as error:
            self._end(one_line(error))

    def _follow(self) -> NoReturn:
        while True:
            answer = self._do(self._next())
            self._done += 1
            if not any(follower.is_busy for follower in self._followers.values()):
                self._finished = self._done
            if answer is not None:
                self._write(answer)

    def _next(self) -> Order:
        """The next order; while there is none, what is under way is waited for, and then nothing is done."""
        try:
            return self._queue.get_nowait()
        except Empty:
            for follower in self._followers.values():
                follower.finish()
            self._finished = self._done
            return self._queue.get()

    def _do(self, order: Order) -> Answer | None:
        match order:
            case Hello():
                return self._facts(order)
            case Join():
                self._link = connect(order)
                return Done()
            case Load():
                return self._load(order)
            case Unload():
                self._unload(order.model)
                return None
            case Probe():
                take_part(self._joined, order)
                return None
            case Beat():
                return None
        if order.model not in self._followers:
            raise HostError(f"{order.do} of model {order.model}, which is not loaded")
        return self._followers[order.model].do(order)

    @property
    def _joined(self) -> Link:
        if self._link is None:
            raise HostError("not connected to the other hosts yet")
        return self._link

    def _facts(self, hello: Hello) -> Facts:
        """What this host is, and what it has of the model."""
        self._hello = hello
        memory, (version, mlx) = device.memory(), versions()
        sampled: dict[str, str] = {}
        identity, problem, port = None, None, 0
        try:
            port = free_port(hello.ip)
            if hello.source is not None:
                folder, headers = resolve_headers(self._locate(hello.source), revision=hello.revision)
                identity, sampled = digest(read_config_json(folder), headers), samples(folder, headers)
        except AfmoeError as error:
            problem = one_line(error)
        return Facts(
            version=version,
            mlx=mlx,
            device=device.device_name(),
            memory=memory.total,
            usable=memory.usable,
            bandwidth=int(own_bandwidth()[0]),
            identity=identity,
            samples=sampled,
            port=port,
            problem=problem,
        )

    def _load(self, order: Load) -> Done:
        if self._hello is None or self._hello.source is None:
            raise HostError("told to load before being told what")
        options: dict[str, Any] = {
            "context": order.context,
            "dtype": getattr(mx, order.dtype),
            "kv_quantization": quantization_of(order.kept),
        }
        check = fit_check("its part", **options, experts_in_memory=order.experts_in_memory)
        model, _ = load_model(
            self._locate(self._hello.source),
            revision=self._hello.revision,
            dtype=options["dtype"],
            check=None if order.force else check,
            place=place_experts(order.experts_in_memory, **options),
            part=range(order.first, order.last),
        )
        self._resident.enter_context(device.resident())  # until the process ends
        follower = self._followers[order.model] = Follower(model, self._joined, directory=self._directory)
        follower.warm_up()
        return Done(reads_experts=model.reads_experts)

    def _unload(self, model: int) -> None:
        """Let a model's memory go; MLX connects once in a process, so this one stays for another."""
        self._followers.pop(model, None)
        gc.collect()
        mx.clear_cache()
        if not self._followers:
            self._resident.close()

    def _read(self) -> None:
        reader = orders()
        while line := self._in.readline(LONGEST_LINE):
            self._heard = time.monotonic()
            try:
                order = reader.read(line.decode("utf-8", "replace"))
            except HostError as error:
                self._end(one_line(error))
            if not isinstance(order, Beat):
                self._queue.put(order)
        os._exit(0)  # the leader is gone

    def _beat(self) -> None:
        while True:
            time.sleep(self._silence / BEATS)
            if time.monotonic() - self._heard > self._silence * PATIENCE:
                self._end(f"the leader has been silent for {self._silence * PATIENCE:.0f} s")
            self._write(Beat(self._finished))

    def _write(self, answer: Answer) -> None:
        try:
            with self._writing:
                self._out.write(to_line(answer))
                self._out.flush()
        except OSError:
            os._exit(0)  # nobody reads

    def _end(self, line: str) -> NoReturn:
        # the process ends whatever the main thread is blocked in, and though nobody reads what it writes
        threading.Timer(LAST_WORDS, os._exit, (1,)).start()
        self._write(Failed(line[:1000]))
        print(line, file=sys.stderr, flush=True)
        os._exit(1)
