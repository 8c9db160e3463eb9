"""Tokens computed again in a long conversation, ours and mlx-lm's: `python benchmarks/prefix_reuse.py [--picture F]`

Twenty turns far past a window of 64; then turns 3, 10 and 19 are edited, the last answer is made anew, another
conversation comes between, and the process starts anew. Ours is what the chat does: the live cache steps back, else the
prefix store serves. mlx-lm's is what its server does: an `LRUPromptCache` of ten caches, kept at the end of the system
prompt, of each prompt and of each answer. The same weights and tokens; answers are given, so that both see the same.
Times are medians of the runs; a block of 256 more than the new tokens is the bar.
"""

import argparse
import copy
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from narrow import median, narrow_pair

from afmoe_mlx.cache import PrefixStore, shared_prefix
from afmoe_mlx.generation import prefill
from afmoe_mlx.models import CausalLM

WINDOW, TURNS = 64, 20
SYSTEM, MESSAGE, ANSWER = 256, 48, 32
TAIL = 3  # tokens of a template between a message and its answer; mlx-lm's server keeps a cache before them
STEP = 512
BLOCK = 256


class Event(NamedTuple):
    """A prompt that is to be answered."""

    name: str
    prompt: list[int]
    known: int
    """How many of its tokens have been seen before, in any conversation."""
    answer: list[int]


class Result(NamedTuple):
    computed: int
    seconds: float


class Ours:
    """The chat's way."""

    name = "afmoe-mlx"

    def __init__(self, model: CausalLM, directory: str) -> None:
        self.model, self.directory = model, directory
        self.restart()

    def restart(self) -> None:
        self.store = PrefixStore(self.model, max_bytes=1 << 30, directory=self.directory, max_disk_bytes=1 << 30)
        self.store.reach([0])  # reads the weights' identity
        self.cache, self.held = self.model.make_cache(), list[int]()

    def prepare(self, prompt: list[int]) -> int:
        """Bring the cache to what is known of a prompt."""
        common = shared_prefix(self.held, prompt[:-1])
        is_near = self.cache.offset - common <= self.cache.rewindable
        if self.store.reach(prompt) > (common if is_near else -1):
            self.cache, common = self.store.lookup(prompt)
        elif is_near:
            self.cache.rewind(self.cache.offset - common)
        else:
            self.cache, common = self.model.make_cache(), 0
        return common

    def run(self, event: Event) -> Result:
        began = time.perf_counter()
        known = self.prepare(event.prompt)
        keep = lambda: self.store.insert(event.prompt[: self.cache.offset], self.cache)  # noqa: E731
        mx.eval(prefill(self.model, event.prompt[known:], self.cache, step_size=STEP, on_chunk=keep))
        seconds = time.perf_counter() - began
        decode(lambda ids: self.model(ids, cache=self.cache), event.answer)
        self.held = [*event.prompt, *event.answer]
        self.store.insert(self.held, self.cache, marks=[len(event.prompt), len(self.held)])
        self.store.flush()
        return Result(len(event.prompt) - known, seconds)


class Theirs:
    """The way of mlx-lm's server."""

    name = "mlx-lm"

    def __init__(self, model: Any) -> None:
        self.model = model
        self.restart()

    def restart(self) -> None:
        from mlx_lm.models.cache import LRUPromptCache

        self.caches = LRUPromptCache()

    def run(self, event: Event) -> Result:
        from mlx_lm.models.cache import make_prompt_cache

        prompt = event.prompt
        began = time.perf_counter()
        cache, rest = self.caches.fetch_nearest_cache("model", prompt)
        cache = make_prompt_cache(self.model) if cache is None else cache
        done = len(prompt) - len(rest)
        for end, kind in ((SYSTEM, "system"), (len(prompt) - TAIL, "user"), (len(prompt), None)):
            for start in range(done, end, STEP):
                logits = self.model(mx.array([prompt[start : min(start + STEP, end)]]), cache=cache)
                mx.eval([c.state for c in cache])
            if kind and end > done:
                self.caches.insert_cache("model", prompt[:end], copy.deepcopy(cache), cache_type=kind)
            done = max(done, end)
        mx.eval(logits[:, -1])
        seconds = time.perf_counter() - began
        decode(lambda ids: self.model(ids, cache=cache), event.answer)
        self.caches.insert_cache("model", [*prompt, *event.answer], cache)
        return Result(len(rest), seconds)


def decode(step: Callable[[mx.array], mx.array], answer: Sequence[int]) -> None:
    for token in answer:
        mx.eval(step(mx.array([[token]])))


def events() -> list[Event]:
    """What happens; a prompt named "restart" comes after the process has started anew."""
    random = np.random.default_rng(0)

    def words(count: int) -> list[int]:
        return random.integers(0, 1024, count).tolist()

    system, tail = words(SYSTEM), words(TAIL)
    seen: list[list[int]] = []
    found: list[Event] = []

    def ask(name: str, before: list[int], message: list[int]) -> list[int]:
        prompt = [*before, *message, *tail]
        known = max((shared_prefix(prompt[:-1], other) for other in seen), default=0)
        found.append(Event(name, prompt, known, words(ANSWER)))
        seen.append([*prompt, *found[-1].answer])
        return seen[-1]

    turns = [system]
    for i in range(TURNS):
        turns.append(ask(str(i + 1), turns[-1], words(MESSAGE)))
    for i in (3, 10, 19):
        ask(f"edit {i}", turns[i - 1], words(MESSAGE))
    found.append(found[-1]._replace(name="again", known=len(found[-1].prompt) - 1, answer=words(ANSWER)))
    other = ask("other", system, words(MESSAGE))
    ask("other", other, words(MESSAGE))
    turns.append(ask("back", turns[-1], words(MESSAGE)))
    ask("restart", turns[-1], words(MESSAGE))
    return found


def picture(happened: Sequence[Event], results: dict[str, list[Result]]) -> str:
    """Tokens computed at each event, side by side, as SVG."""
    width, height, left, top, step = 980, 330, 52, 56, 32
    highest = max(result.computed for runs in results.values() for result in runs)
    colours = {Ours.name: "#2a78d6", Theirs.name: "#b9b7ad"}
    base = height - 62
    scale = (base - top) / highest
    font = 'font-family="sans-serif" font-size="11"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" {font}>',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="{left}" y="22" font-size="14" fill="#222222">Prompt tokens computed at each turn</text>',
    ]
    for i, (name, colour) in enumerate(colours.items()):
        parts.append(f'<rect x="{left + i * 90}" y="32" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{left + 14 + i * 90}" y="41" fill="#222222">{name}</text>')
    for value in range(0, highest + 1, 500):
        y = base - value * scale
        parts.append(f'<line x1="{left}" x2="{width - 10}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e6e5e0"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end" fill="#666666">{value}</text>')
    for i, event in enumerate(happened):
        x = left + 8 + i * step
        for j, name in enumerate((Theirs.name, Ours.name)):
            tall = results[name][i].computed * scale
            box = f'x="{x + j * 12}" y="{base - tall:.1f}" width="11" height="{tall:.1f}"'
            parts.append(f'<rect {box} fill="{colours[name]}"/>')
        turned = f'transform="translate({x + 14},{base + 12}) rotate(-45)" text-anchor="end"'
        parts.append(f'<text {turned} fill="#444444">{event.name}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def run(events: Sequence[Event], model: CausalLM, theirs: Any) -> dict[str, list[Result]]:
    """All that happens, once on each side; says what is held at the end."""
    results: dict[str, list[Result]] = {Ours.name: [], Theirs.name: []}
    with TemporaryDirectory() as folder:
        ours, peer = Ours(model, folder), Theirs(theirs)
        for event in events:
            held = ours.store.nbytes / 1e6, peer.caches.nbytes / 1e6
            for side in (ours, peer):
                if event.name == "restart":
                    side.restart()
                mx.clear_cache()  # what the other side left is not to be freed on this side's time
                results[side.name].append(side.run(event))
        on_disk = sum(path.stat().st_size for path in Path(folder).rglob("*.block")) / 1e6
    print(f"held before the restart: ours {held[0]:.1f} MB, mlx-lm {held[1]:.1f} MB; ours on disk {on_disk:.1f} MB")
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", type=Path, help="where to draw the tokens computed, as SVG")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    pair, happened = narrow_pair(sliding_window=WINDOW), events()
    runs = [run(happened, *pair) for _ in range(options.runs)]
    print("\n| turn | prompt | new | ours computes | mlx-lm computes | ours, first token | mlx-lm, first token |")
    print("|---|---|---|---|---|---|---|")
    for i, event in enumerate(happened):
        (ours, our_time), (theirs, their_time) = (
            (runs[0][name][i].computed, median([one[name][i].seconds for one in runs])) for name in runs[0]
        )
        new = len(event.prompt) - event.known
        above = "" if ours <= new + BLOCK else " (ABOVE THE BAR)"
        row = (event.name, len(event.prompt), new, f"{ours}{above}", theirs, f"{our_time:.2f} s", f"{their_time:.2f} s")
        print("| " + " | ".join(map(str, row)) + " |")
    ours, theirs = (sum(result.computed for result in runs[0][name]) for name in runs[0])
    print(f"\nin all {ours} and {theirs} tokens")
    if options.picture:
        options.picture.write_text(picture(happened, runs[0]), encoding="utf-8")


if __name__ == "__main__":
    main()
