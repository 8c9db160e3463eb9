"""Our server beside mlx-lm's, on the same checkpoint in float32: `python benchmarks/server.py [--runs N] [--only WORD]`

Both run at once and are asked in turns, by a client that is a process of its own and streams. The built-in model in 4
bits with scales in float32, and eight narrow layers (`--only "wide load"`: as wide as Nano's, which takes mlx-lm
minutes); no answer ends but by its limit, and prompts are new to both. Then what only ours is asked: an agent's turns,
rows that run while its prompt is read, and the start. All of it takes about eight minutes, `--runs 1` three; the table
is that of docs/server.md.
"""

import argparse
import asyncio
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import afmoe_mlx  # noqa: F401  (before MLX, so that MLX finds the fast BLAS)

# isort: split
import servers
from narrow import alternated, median, paired_ratio
from streaming_client import answered, ask

from afmoe_mlx.api import DEMO
from afmoe_mlx.cache import shared_prefix
from afmoe_mlx.device import blas
from afmoe_mlx.server.engine.service import BLOCK_SIZE
from afmoe_mlx.tokenizer import Tokenizer

MODELS = {"demo": servers.endless_demo, "narrow": servers.endless_narrow, "wide": servers.endless_wide}
PARTS = ("demo", "narrow", "load", "agent", "beside", "start")
CLIENTS = (1, 4, 16)
SPEED_BARS = {1: 1.0, 4: 1.5, 16: 1.5}
FIRST_TOKEN_BAR, SECOND_TURN_BAR, START_BAR = 0.6, 0.08, 1.0
PREAMBLE = {"demo": 3000, "narrow": 8000, "wide": 1000}
SLICE_MS = 250
ROUNDS = {1: 4, 4: 3, 16: 2}
"""Questions that each client asks, one after the other."""
SHORT = {"wide"}
"""Models that take so long that they are asked less."""
WORDS = "the model is a layer that you can not see with what token of one and to how it in for my your".split()


def words(chance: random.Random, count: int) -> str:
    return " ".join(chance.choices(WORDS, k=count))


def question(chance: random.Random, *, is_short: bool = False) -> dict[str, Any]:
    """One of 16 to 400 words, each about a token, short ones more often; the answer has 32 to 96 tokens."""
    message = {"role": "user", "content": words(chance, round((1 if is_short else 16) * 25 ** chance.random()))}
    return {"messages": [message], "max_tokens": chance.randrange(4, 13) if is_short else chance.randrange(32, 97)}


def tools(chance: random.Random, size: int, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Functions that take so many tokens, none like that of another chance."""
    found: list[dict[str, Any]] = []
    while (left := size - len(tokenizer.encode(json.dumps(found)))) > 0:
        path = {"type": "string", "description": words(chance, 10)}
        parameters = {"type": "object", "properties": {"path": path}, "required": ["path"]}
        described = words(chance, min(left // 2, 60))
        function = {"name": f"tool_{len(found)}", "description": described, "parameters": parameters}
        found.append({"type": "function", "function": function})
    return found


class Row(NamedTuple):
    """Of the table."""

    question: str
    model: str
    ours: str
    theirs: str
    ratio: str
    bar: str
    is_met: bool

    def __str__(self) -> str:
        return f"| {' | '.join(self[:-1])}{'' if self.is_met else ' MISSED'} |"


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


def first_tokens(found: Sequence[dict[str, Any]]) -> list[float]:
    return [one["times"][0] - one["began"] for one in found]


def speed(found: Sequence[dict[str, Any]]) -> float:
    """Tokens a second, from the first question to the end of the last answer."""
    seconds = max(one["ended"] for one in found) - min(one["began"] for one in found)
    return sum(one["answer"] for one in found) / seconds


def loads(model: str, ports: Sequence[int], runs: int) -> Iterator[Row]:
    """Ours and mlx-lm's under clients that ask one question after the other."""
    for clients in CLIENTS:
        seeds = [iter(range(runs + 1)) for _ in ports]

        def run(side: int, clients: int = clients, seeds: list[Any] = seeds) -> list[dict[str, Any]]:
            chance = random.Random(f"{clients} {next(seeds[side])}")
            is_short, rounds = model in SHORT, 1 if model in SHORT else ROUNDS[clients]
            asked = [[question(chance, is_short=is_short) for _ in range(rounds)] for _ in range(clients)]
            found = ask(ports[side], "load", asked)
            limits = [body["max_tokens"] for bodies in asked for body in bodies]
            assert [one["answer"] for one in found] == limits, "an answer ended before its limit"
            return found

        if clients == 1:
            run(0), run(1)  # what is done once, at the first question
        sides = alternated(runs, lambda run=run: run(0), lambda run=run: run(1))
        for a, b in zip(*sides, strict=True):
            assert [x["prompt"] for x in a] == [x["prompt"] for x in b], "the prompts are not the same"
        ours, theirs = ([speed(found) for found in side] for side in sides)
        ratio, bar = paired_ratio(ours, theirs), SPEED_BARS[clients]
        figures = (f"{median(ours):.0f}", f"{median(theirs):.0f}", f"**{ratio:.2f}**", f"≥ {bar:.1f}")
        yield Row(f"tokens/s, {clients} client{'s' * (clients > 1)}", model, *figures, ratio >= bar)
    ours, theirs = ([percentile(first_tokens(found), 0.95) for found in side] for side in sides)
    ratio, bar = paired_ratio(ours, theirs), FIRST_TOKEN_BAR
    figures = (f"{median(ours):.2f} s", f"{median(theirs):.2f} s", f"**{ratio:.2f}**", f"≤ {bar}")
    yield Row(f"time to first token, 95th percentile, {clients} clients", model, *figures, ratio <= bar)


def agent(model: str, folder: Path, port: int, runs: int) -> Iterator[Row]:
    """Turns of an agent, whose tools are new to the server in each run."""
    tokenizer = Tokenizer.from_folder(folder)
    firsts, seconds, ratios, above = [], [], [], []
    for i in range(runs):
        chance = random.Random(f"agent {i}")
        system = {"role": "system", "content": words(chance, 100)}
        offered = tools(chance, PREAMBLE[model], tokenizer)
        body = {"messages": [system], "tools": offered, "tool_choice": "auto", "max_tokens": 16}
        turns = [words(chance, 40) for _ in range(3)]
        found = ask(port, "conversation", body, turns, words(chance, 40))
        first, second = first_tokens(found)[:2]
        firsts.append(first), seconds.append(second), ratios.append(second / first)
        last, edited = (
            tokenizer.apply_chat_template(one["messages"], tools=offered, add_generation_prompt=True)
            for one in (found[-2], found[-1])
        )
        assert len(edited) == found[-1]["prompt"], "the prompt is not what the template makes of the messages"
        above.append(found[-1]["prompt"] - found[-1]["known"] - (len(edited) - shared_prefix(last, edited)))
    ratio, size = median(ratios), found[0]["prompt"]
    figures = (f"{median(seconds):.3f} s of {median(firsts):.2f} s", "", f"**{ratio:.3f}**")
    yield Row(f"second turn after {size} tokens", model, *figures, f"≤ {SECOND_TURN_BAR}", ratio <= SECOND_TURN_BAR)
    computed = f"the edit and {max(above)} tokens"
    yield Row(
        "edited middle turn, recomputed",
        model,
        computed,
        "",
        "",
        f"the edit and ≤ {BLOCK_SIZE}",
        max(above) <= BLOCK_SIZE,
    )


def delays(model: str, folder: Path, port: int, runs: int) -> Row:
    """The longest time between two tokens of running rows while a long prompt is read."""
    tokenizer, steps, longest = Tokenizer.from_folder(folder), [], []
    for i in range(runs):
        chance = random.Random(f"beside {i}")
        running = [{**question(chance), "max_tokens": 1500 if model == "demo" else 3000} for _ in range(4)]
        messages = [{"role": "user", "content": words(chance, 40)}]
        arriving = {"messages": messages, "tools": tools(chance, PREAMBLE[model], tokenizer), "max_tokens": 1}
        arrived, *rows = ask(port, "beside", running, arriving)
        alone = [b - a for row in rows for a, b in pairwise(row["times"]) if b < arrived["began"]]
        gaps = pairwise(sorted(time for row in rows for time in row["times"]))  # by any row: some tokens have no text
        during = [b - a for a, b in gaps if arrived["began"] <= b and a <= arrived["times"][0]]
        assert min(row["times"][-1] for row in rows) > arrived["times"][0], "a row ended before the prompt was read"
        steps.append(statistics.median(alone)), longest.append(max(during))
    step, most = median(steps), median(longest)
    name = f"longest wait between tokens beside {arrived['prompt']} tokens"
    told = f"{1000 * most:.0f} ms, a step alone {1000 * step:.0f} ms"
    return Row(name, model, told, "", "", f"≤ a step and {SLICE_MS} ms", most <= step + SLICE_MS / 1000)


def starts(runs: int) -> Row:
    """From nothing to the last byte of a first answer, by the built-in model as it comes."""
    body = {"messages": [{"role": "user", "content": "What is AFMoE?"}], "max_tokens": 16}

    def start(run: Any, folder: Path, *arguments: str) -> float:
        with run(folder, *arguments) as server:
            asyncio.run(answered(server.port, body))
            return time.perf_counter() - server.began

    with tempfile.TemporaryDirectory() as temporary:
        folder = servers.endless_demo(Path(temporary) / "demo")
        (
            start(servers.ours, DEMO, "--any-model-name"),
            start(servers.theirs, folder),
        )  # compiled and in the disk's cache from here on
        ours, theirs = alternated(
            runs, lambda: start(servers.ours, DEMO, "--any-model-name"), lambda: start(servers.theirs, folder)
        )
    figures = (f"{median(ours):.2f} s", f"{median(theirs):.2f} s", f"{paired_ratio(ours, theirs):.2f}")
    return Row("start to first answer", "demo", *figures, f"≤ {START_BAR} s", median(ours) <= START_BAR)


def machine() -> str:
    found = blas()
    library = found.library.name if found and found.library else "no fast BLAS"
    return f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}, {library}"


def rows(runs: int, only: Sequence[str]) -> Iterator[Row]:
    """Of the table, but for what is not among `only`."""
    for model, make in MODELS.items():
        if model not in only:
            continue
        with ExitStack() as stack:
            folder = make(Path(stack.enter_context(tempfile.TemporaryDirectory())) / model)
            port = stack.enter_context(servers.ours(folder, "--any-model-name")).port
            if "load" in only:
                with servers.theirs(folder) as peer:
                    yield from loads(model, (port, peer.port), runs)
            if "agent" in only:
                yield from agent(model, folder, port, runs)
            if "beside" in only:
                yield delays(model, folder, port, runs)
    if "start" in only:
        yield starts(2 * runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", default=" ".join(PARTS), help="some of these words: %(default)s")
    options = parser.parse_args()
    print(f"{machine()}; medians of {options.runs} runs\n")
    print("| question | model | ours | mlx-lm | ratio | bar |\n|---|---|---|---|---|---|", flush=True)
    missed = 0
    for row in rows(options.runs, options.only.split()):
        print(row, flush=True)
        missed += not row.is_met
    sys.exit(missed > 0)


if __name__ == "__main__":
    main()
