"""Experts from the SSD, measured with a disk of set bandwidth and latency: `python benchmarks/experts.py [PART…]`

memory    a process with a random model of Trinity Nano's shape in 4 bits, as the system measures it: ≤ 1.6 GB
lru       misses and bytes of a conversation: as a simulator of a least recently used cache counts them
layer     a layer that reads its experts, from a throttled disk: ≤ 1.15 × its slowest read + its computation
resident  a step with a slot for every expert: ≤ 1.1 × the plain model's
ideas     what might be found in memory more often, or be awaited less: see LOG.md

Models are made in a temporary folder ($TMPDIR), 3.5 GB for `memory`. All parts are run unless some are named.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from afmoe_mlx import load, load_model  # first: it looks for a fast BLAS
from afmoe_mlx.api import DEMO
from afmoe_mlx.checkpoint.random import save_random
from afmoe_mlx.demo.corpus import Writer
from afmoe_mlx.footprint import place_experts
from afmoe_mlx.generation import SamplingOptions, decode, make_sampler, prefill
from afmoe_mlx.models import CausalLM, ExpertPlacement, Trace
from afmoe_mlx.models.pool import ExpertPool, ExpertSource, Reading
from afmoe_mlx.models.shapes import shape
from afmoe_mlx.models.streamed import StreamedExperts

import mlx.core as mx  # isort: skip

BANDWIDTH, LATENCY = 0.5e9, 0.2e-3
BUDGET, MOST = 600_000_000, 1.6e9
PROMPT, TOKENS = 256, 16


class Disk:
    """Serves one batch after the other: at once would be faster than its bandwidth allows."""

    def __init__(self, bandwidth: float = BANDWIDTH, latency: float = LATENCY) -> None:
        self.bandwidth, self.latency = bandwidth, latency
        self.free = 0.0
        self.slowest = 0.0

    def attach(self, model: CausalLM) -> None:
        """Have a model's experts come from this disk."""
        for pool in model.expert_pools:
            pool._source = Throttled(pool._source, self)


class Throttled:
    """A source whose reads take what they would from a disk."""

    def __init__(self, source: ExpertSource, disk: Disk) -> None:
        self._source, self._disk = source, disk
        self.tensors, self.expert_bytes, self.identity = source.tensors, source.expert_bytes, source.identity

    def read(self, wanted: Mapping[int, Sequence[memoryview]]) -> "Slowed":
        seconds = self._disk.latency + len(wanted) * self.expert_bytes / self._disk.bandwidth
        return Slowed(self._source.read(wanted), self._disk, seconds)


class Slowed:
    def __init__(self, reading: Reading, disk: Disk, seconds: float) -> None:
        self._reading, self._disk, self._seconds = reading, disk, seconds

    def begin(self) -> None:
        self._began, disk = time.perf_counter(), self._disk
        self._end = disk.free = max(disk.free, self._began) + self._seconds
        disk.slowest = max(disk.slowest, self._end - self._began)
        self._reading.begin()

    def wait(self) -> float:
        seconds = self._reading.wait()
        time.sleep(max(self._end - time.perf_counter(), 0))
        return max(seconds, self._end - self._began)


def folder_of(name: str, layers: int | None, where: Path) -> Path:
    folder = where / f"{name}-{layers}"
    return folder if folder.exists() else save_random(folder, shape(name, layers=layers), bits=4)


def streamed(folder: Path, slots: int, whole_layers: int = 0) -> CausalLM:
    return load_model(folder, place=lambda *_: ExpertPlacement(slots, whole_layers))[0]


def tokens_of(model: CausalLM, count: int, seed: int = 0) -> list[int]:
    return mx.random.randint(0, model.config.vocab_size, (count,), key=mx.random.key(seed)).tolist()  # type: ignore[return-value]


def memory(where: Path) -> None:
    """Run a prompt and an answer in a process of its own; what the system says that it held at most."""
    folder = folder_of("trinity-nano", None, where)
    code = f"import benchmarks.experts as b; b.answer({str(folder)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    told("memory", found["rss"] / MOST, 1.0, f"{found['rss'] / 1e9:.2f} GB, {found}")


def answer(folder: str) -> None:
    model, _ = load_model(folder, place=place_experts(BUDGET))
    cache = model.make_cache()
    logits = prefill(model, tokens_of(model, PROMPT), cache)
    for _ in decode(model, logits, cache, make_sampler(SamplingOptions()), limit=TOKENS):
        pass
    told = {"mlx": mx.get_peak_memory(), "slots": model.expert_pools[0].slots, "misses": model.expert_reads.misses}
    print(json.dumps({"rss": most_held()} | told))


def most_held() -> int:
    """Bytes that this process held at most. Linux counts into `ru_maxrss` what its parent held when it was begun."""
    if sys.platform != "linux":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def lru(where: Path) -> None:
    """Count the misses of steps beside a plain least recently used cache for each layer."""
    folder = folder_of("trinity-nano", 6, where)
    for slots in (16, 32, 64):
        model = streamed(folder, slots)
        recorded: list[tuple[int, list[int]]] = []
        for i, pool in enumerate(model.expert_pools):
            pool.run = recording(pool, i, recorded)  # type: ignore[method-assign]
        cache = model.make_cache()
        ids = tokens_of(model, 48)
        for token in ids:  # a token at a time
            mx.eval(model(mx.array([[token]]), cache=cache))
        reads, expected = model.expert_reads, simulated(recorded, slots, model.config.num_experts)
        size = model.expert_pools[0]._source.expert_bytes
        told(f"lru, {slots} slots", reads.misses / expected, 1.0, f"misses {reads.misses}, simulated {expected}")
        assert reads.misses == expected
        assert reads.bytes_read == reads.misses * size


def recording(pool: ExpertPool, layer: int, into: list[tuple[int, list[int]]]) -> Callable[..., None]:
    run = pool.run

    def recorded(needed: Sequence[int], compute: Any) -> None:
        into.append((layer, list(needed)))
        run(needed, compute)

    return recorded


def simulated(steps: Sequence[tuple[int, list[int]]], slots: int, experts: int) -> int:
    held: dict[int, OrderedDict[int, None]] = {}
    misses = 0
    for layer, needed in steps:
        cache = held.setdefault(layer, OrderedDict())
        for expert in needed:
            if expert >= experts:  # a shared one
                continue
            misses += expert not in cache
            cache[expert] = None
            cache.move_to_end(expert)
        while len(cache) > slots:
            cache.popitem(last=False)
    return misses


def layer(where: Path) -> None:
    """Time a layer's experts for a token, with some missing, beside the slowest read and the computation alone."""
    folder = folder_of("trinity-mini", 3, where)
    model, disk = streamed(folder, 32), Disk()
    disk.attach(model)
    (pool,) = model.expert_pools
    experts = model.layers[-1].sparse.experts
    number, k = model.config.num_experts, model.config.num_experts_per_tok
    x = mx.random.normal((1, 1, model.config.hidden_size), key=mx.random.key(0)).astype(model.dtype)
    weights = mx.full((1, 1, k), 1 / k)

    def run(chosen: Sequence[int]) -> float:
        ids = mx.array([[list(chosen)]], mx.uint32)
        mx.eval(ids)
        began = time.perf_counter()
        mx.eval(experts(x, ids, weights))
        return time.perf_counter() - began

    for first in range(0, pool.slots, k):
        run(range(first, first + k))
    ratios: dict[int, list[float]] = {}
    following = 0
    for turn in range(40):
        missing = (1, 2, 4, 8)[turn % 4]
        held = pool.held[missing - k :] if missing < k else []
        fresh: list[int] = []
        while len(fresh) < missing:
            following = (following + 1) % number
            if following not in pool.held:
                fresh.append(following)
        disk.slowest = 0.0
        whole = run([*held, *fresh])
        computed = median(run([*held, *fresh]) for _ in range(5))
        ratios.setdefault(missing, []).append(whole / (disk.slowest + computed))
    for missing, found in sorted(ratios.items()):
        told(f"layer, {missing} of {k} read", median(found), 1.15, f"{min(found):.2f} to {max(found):.2f}")


def resident(where: Path) -> None:
    """Time steps of a model with a slot for every expert and of the plain one, in turns."""
    folder = folder_of("trinity-nano", 6, where)
    plain, pooled = load_model(folder)[0], streamed(folder, shape("trinity-nano")["num_experts"])
    ids = tokens_of(plain, 600)
    caches = [model.make_cache() for model in (plain, pooled)]
    for model, cache in zip((plain, pooled), caches, strict=True):
        prefill(model, ids[:500], cache)
    misses, ratios = pooled.expert_reads.misses, []
    for token in ids[500:]:
        times = []
        for model, cache in zip((plain, pooled), caches, strict=True):
            began = time.perf_counter()
            mx.eval(model(mx.array([[token]]), cache=cache))
            times.append(time.perf_counter() - began)
        ratios.append(times[1] / times[0])
    told(
        "resident", median(ratios), 1.1, f"quartiles {quartiles(ratios)}; {pooled.expert_reads.misses - misses} misses"
    )


def ideas(where: Path) -> None:
    """On the built-in demo, whose routers are trained: what else might be in memory, and what reading ahead gives.

    Hit rates are of a simulator, for the answer after a prompt. The time is of steps from a disk on which an expert
    takes as long as one of Trinity Mini from 3 GB/s, or a fourth of that.
    """
    model, tokenizer = load("demo")
    (calibrated, _), (chosen, ids) = (routing(model, tokenizer, seed) for seed in (9, 5))
    for slots in (2, 4, 8):
        rates: dict[str, list[float]] = {}
        for layer, known in zip(chosen, calibrated, strict=True):
            prompt, answer = layer[:600], layer[600:]
            used = list(dict.fromkeys(expert for step in reversed(prompt) for expert in reversed(step)))[::-1]
            top = [expert for expert, _ in Counter(expert for step in known for expert in step).most_common(slots)]
            ways = {
                "16 tokens, cold": hits(answer[:16], slots),
                "16 tokens, warm": hits(answer[:16], slots, used[-slots:]),
                "LRU": hits(answer, slots, used[-slots:]),
                "fixed by calibration": hits(answer, 0, (), top),
                "half of them fixed": hits(answer, slots - slots // 2, (), top[: slots // 2]),
            }
            for name, rate in ways.items():
                rates.setdefault(name, []).append(rate)
        found = ", ".join(f"{name} {sum(each) / len(each):.0%}" for name, each in rates.items())
        print(f"{slots} of 16 slots: {found}", flush=True)
    for milliseconds in (1.2, 0.3):
        read_ahead(ids, milliseconds)


def routing(model: CausalLM, tokenizer: Any, seed: int) -> tuple[list[list[list[int]]], list[int]]:
    """The experts of each token of a text, by layer, and the text's tokens."""
    ids: list[int] = []
    for messages in Writer(seed=seed).dialogues():
        ids += tokenizer.apply_chat_template(messages, add_generation_prompt=False)
        if len(ids) >= 1200:
            break
    trace = Trace(keep=["selected_experts"])
    model(mx.array([ids[:1200]]), trace=trace)
    return [layer.tolist() for layer in trace.selected_experts], ids[:1200]  # type: ignore[misc]


def hits(steps: Sequence[Sequence[int]], slots: int, held: Sequence[int] = (), fixed: Sequence[int] = ()) -> float:
    """The share found in `slots` least recently used ones, or among those that are fixed."""
    cache = OrderedDict.fromkeys(held)
    found = 0
    for step in steps:
        found += sum(expert in fixed or expert in cache for expert in step)
        for expert in step:
            if expert not in fixed:
                cache[expert] = None
                cache.move_to_end(expert)
        while len(cache) > slots:
            cache.popitem(last=False)
    return found / sum(map(len, steps))


def read_ahead(ids: Sequence[int], milliseconds: float) -> None:
    """Time steps with and without reading what the next layer's router would choose by this layer's input."""
    times: dict[bool, list[float]] = {False: [], True: []}
    misses = {}
    for is_ahead in times:
        model = streamed(DEMO, 4)
        size = model.expert_pools[0]._source.expert_bytes
        Disk(size / milliseconds * 1e3, 0).attach(model)
        if is_ahead:
            for layer, following in pairwise(model.layers[model.config.num_dense_layers :]):
                layer.sparse.experts = Ahead(layer, following)
        cache = model.make_cache()
        prefill(model, ids[:100], cache)
        before = model.expert_reads.misses
        for token in ids[100:200]:
            began = time.perf_counter()
            mx.eval(model(mx.array([[token]]), cache=cache))
            times[is_ahead].append(time.perf_counter() - began)
        misses[is_ahead] = (model.expert_reads.misses - before) / 100
    ratio = median(times[True]) / median(times[False])
    read = f"{misses[False]:.1f} experts read a token, {misses[True]:.1f} with it"
    print(f"reading ahead, {milliseconds} ms an expert: {ratio:.2f} × the time; {read}", flush=True)


class Ahead(StreamedExperts):
    """A layer's experts, after which reading of the next layer's likely ones begins."""

    def __init__(self, layer: Any, following: Any) -> None:
        super().__init__(layer.sparse.experts.pool)
        self._layers = [lambda: layer, lambda: following]

    def __call__(self, x: mx.array, experts: mx.array, weights: mx.array) -> mx.array:
        y = super().__call__(x, experts, weights)
        if experts.size > experts.shape[-1]:  # a prompt
            return y
        layer, following = (get() for get in self._layers)
        pool = following.sparse.experts.pool
        scaled = x / layer.pre_mlp_layernorm.weight * following.pre_mlp_layernorm.weight
        likely = following.sparse.choose(scaled)[0].flatten().tolist()
        missing = [expert for expert in likely if not pool._is_here(expert)]
        pool._finish_reading()
        pool._used |= {expert: pool._wanted + i for i, expert in enumerate(missing)}
        pool._wanted += len(missing)
        pool._begin_reading(missing, beside=[expert for expert in likely if expert in pool._slots])
        return y


def quartiles(values: Sequence[float]) -> str:
    ordered = sorted(values)
    return f"{ordered[len(ordered) // 4]:.2f} to {ordered[3 * len(ordered) // 4]:.2f}"


def told(what: str, found: float, bar: float, more: str = "") -> None:
    print(f"{what:24}{found:6.2f}  (≤ {bar:.2f})  {more}", flush=True)


PARTS: dict[str, Callable[[Path], None]] = {
    "memory": memory,
    "lru": lru,
    "layer": layer,
    "resident": resident,
    "ideas": ideas,
}


def main() -> None:
    named = [argument for argument in sys.argv[1:] if argument in PARTS] or list(PARTS)
    with tempfile.TemporaryDirectory(prefix="afmoe-mlx-experts-") as made:
        for name in named:
            PARTS[name](Path(made))


if __name__ == "__main__":
    main()
