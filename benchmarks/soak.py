"""Whether the server holds: `python benchmarks/soak.py [--seconds N] [--clients N] [--seed N]`

Clients that ask in all protocols, streamed or not, of random lengths, under schemas, with tools, sampled; that leave in
the middle of an answer or of its prompt, read slowly, send what is malformed, far too large or not theirs to ask. Every
answer must come, end as its protocol's clients need, and be the one that was computed beforehand, alone, in this
process: a first difference only where the two likeliest tokens lie within 1e-4. No error may be the server's own, its
memory must stay what it is after the warm-up, and nothing may be left running; then it is told to stop while it writes.

The built-in model, with a chat template that shows tools. A fault is told with the seed of what was sent.
"""

import argparse
import asyncio
import collections
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from known_answers import MODEL, Known, known_questions  # before all that imports MLX

# isort: split
import servers
from acts import ACTS, KEYS, MAX_BODY, Act, Clients
from http_client import request
from protocols import PROTOCOLS

PATIENCE = 90
"""Seconds after which a request counts as unanswered."""
GROWTH = 1.05
"""Of memory after the warm-up, at most."""


class Soak:
    """What clients do, and what has come of it."""

    def __init__(self, clients: Clients) -> None:
        self.clients = clients
        self.done: collections.Counter[str] = collections.Counter()
        self.faults: list[str] = []

    async def client(self, seed: str, ends: float) -> None:
        """Do one thing after the other until it is time."""
        for i in range(sys.maxsize):
            if time.perf_counter() > ends:
                return
            chance = random.Random(f"{seed} {i}")
            act = chance.choices(list(ACTS), weights=list(ACTS.values()))[0]
            await self.act(act, chance, f"{seed} {i}")

    async def act(self, act: Act, chance: random.Random, seed: str) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                await act(self.clients, chance)
            self.done[act.__name__] += 1
        except TimeoutError:
            self.faults.append(f"{act.__name__} ({seed}): no answer in {PATIENCE} seconds")
        except Exception as error:
            self.faults.append(f"{act.__name__} ({seed}): {type(error).__name__}: {error}")


async def figures(port: int) -> dict[str, float]:
    """/metrics, those without labels."""
    async with request(port, "/metrics", headers={"x-api-key": KEYS[0]}) as response:
        lines = (await response.read()).decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name.removeprefix("afmoe_mlx_"): float(value) for name, value in pairs if "{" not in name}


async def watch(server: servers.Server, found: list[tuple[int, float]]) -> None:
    """Resident bytes and those of prefixes, every two seconds."""
    while True:
        await asyncio.sleep(2)
        found.append((server.resident_bytes, (await figures(server.port))["store_bytes"]))


def memory_faults(found: Sequence[tuple[int, float]]) -> list[str]:
    """Of the middle fifth of the time beside the last, in a soak of more than three minutes."""
    if len(found) < 100:
        return []
    fifth = len(found) // 5
    told = []
    for name, values in zip(("resident memory", "memory of prefixes"), zip(*found, strict=True), strict=True):
        warm, last = (statistics.median(part) for part in (values[2 * fifth : 3 * fifth], values[-fifth:]))
        print(f"{name}: {warm / 1e6:.1f} MB after the warm-up, {last / 1e6:.1f} MB at the end")
        if last > GROWTH * warm + 4e6:
            told.append(f"{name} has grown from {warm / 1e6:.1f} to {last / 1e6:.1f} MB")
    return told


async def is_idle(port: int) -> str | None:
    """What is left running when all clients are gone."""
    for _ in range(50):
        told = await figures(port)
        left = {name: told[name] for name in ("batch_rows", "requests_waiting")}
        if not any(left.values()):
            return None
        await asyncio.sleep(0.1)
    return f"left when all clients are gone: {left}"


async def stop(soak: Soak, server: servers.Server) -> list[str]:
    """Tell the server to stop while it writes: answers end whole, and the process with 0."""
    known = max(soak.clients.known, key=lambda one: len(one.text))
    bodies = [(protocol, protocol.streamed_body(known.asked)) for protocol in PROTOCOLS]

    async def last(protocol: Any, body: Any) -> None:
        async with request(soak.clients.port, protocol.path, body, headers={"x-api-key": KEYS[0]}) as response:
            known.compare(protocol.streamed([event async for event in response.events()]).text, is_whole=True)

    tasks = [asyncio.create_task(last(*one)) for one in bodies]
    await asyncio.sleep(0.1)
    status = await asyncio.to_thread(server.stop)
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    faults = [f"an answer when it stopped: {type(end).__name__}: {end}" for end in ends if end is not None]
    return faults + ([f"it ended with {status}"] if status else [])


async def soak_for(server: servers.Server, known: Sequence[Known], options: argparse.Namespace) -> list[str]:
    """All of it; the faults."""
    soak, memory = Soak(Clients(server.port, known)), list[tuple[int, float]]()
    watching = asyncio.create_task(watch(server, memory))
    ends = time.perf_counter() + options.seconds
    await asyncio.gather(*(soak.client(f"{options.seed} {i}", ends) for i in range(options.clients)))
    print(f"{sum(soak.done.values())} requests: {dict(soak.done.most_common())}")
    print(f"statuses: {dict(soak.clients.statuses)}")
    faults = soak.faults + memory_faults(memory)
    if not watching.cancel():
        faults.append(f"memory could not be watched: {watching.exception()!r}")
    if left := await is_idle(server.port):
        faults.append(left)
    return faults + await stop(soak, server)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--questions", type=int, default=40, help="whose answers are computed beforehand")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, help="where the server's log goes")
    options = parser.parse_args()
    limits = ["--max-rows", "8", "--max-queue", "6", "--max-body", str(MAX_BODY)]
    keys = [word for key in KEYS for word in ("--api-key", key)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = servers.demo_with_tools(Path(temporary) / MODEL)
        known = known_questions(folder, options.questions, random.Random(options.seed))
        with servers.ours(folder, *limits, *keys, log=options.log) as server:
            faults = asyncio.run(soak_for(server, known, options))
    print(*faults[:20], f"{len(faults)} faults", sep="\n")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
