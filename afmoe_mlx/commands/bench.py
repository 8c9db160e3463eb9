"""`afmoe-mlx bench`: how fast a model runs here, and how near that is to what the memory's bandwidth allows."""

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import median
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from .. import device
from ..api import DEMO, adapting, counting, load
from ..cache import Cache
from ..checkpoint import load_model, resolve
from ..checkpoint.random import random_model
from ..checkpoint.verify import Headers
from ..command_line.experts import figures, in_words, tell_experts
from ..command_line.hosts import tell_hosts
from ..command_line.progress import progress_bar
from ..command_line.requests.answering import or_demo
from ..command_line.requests.machine import BenchRequest
from ..errors import InputError
from ..footprint import ExpertsInMemory, check_shape, fit_check, place_experts
from ..generation import SamplingOptions, decode, make_sampler, prefill
from ..models import CausalLM, ExpertReads, ModelConfig, read_config
from ..models.shapes import shape
from ..terminal import note, size, write, write_json

# Tokens of the run before the first trial: they leave every kernel compiled.
WARM_UP = 4

# What --bits may be; 16 leaves the weights unquantized.
BITS = (2, 3, 4, 5, 6, 8, 16)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What each trial runs. Raises InputError for numbers below 1."""

    prompt_tokens: int
    generation_tokens: int
    batch_size: int
    num_trials: int
    prefill_step_size: int | None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}: expected 1 or more")

    def check_context(self, config: ModelConfig) -> None:
        """InputError if the tokens of a trial are more than the model can have in its context."""
        longest = config.max_position_embeddings
        if self.context > longest:
            found = f"prompt and generation have {self.context} tokens"
            raise InputError(f"{found}: expected {longest} at most, the model's context")

    @property
    def context(self) -> int:
        """Tokens of a row."""
        return self.prompt_tokens + self.generation_tokens


@dataclass(frozen=True)
class Trial:
    """Tokens a second of all rows together: the prompt up to the first token, and those generated after it."""

    prompt_tps: float
    generation_tps: float
    prompt_reads: ExpertReads
    """Of experts that are not in memory, for the prompt."""


@dataclass(frozen=True)
class Reads:
    """Bytes that one decoded token reads: of the weights, and of the cache half-way through the generation."""

    weights: int
    cache: int


def run(request: BenchRequest) -> None:
    """Measure a model, or a shape, and print what came of it."""
    settings = Settings(**{field.name: getattr(request, field.name) for field in fields(Settings)})
    if request.shape is None:
        experts = request.experts_in_memory
        name, revision = or_demo(request.model), request.revision
        if request.hosts is not None:
            bench_hosts(name, settings, request)
            return
        given: dict[str, Any] = {"experts_in_memory": experts, "adapters": request.adapters}
        bench_model(name, settings, revision=revision, **given, as_json=request.as_json)
    else:
        bits = 4 if request.bits is None else request.bits
        bench_shape(request.shape, settings, layers=request.layers, bits=bits, as_json=request.as_json)


def bench_model(
    name: str,
    settings: Settings,
    *,
    revision: str | None,
    experts_in_memory: ExpertsInMemory,
    adapters: Mapping[str, Any],
    as_json: bool,
) -> None:
    """Measure a model given as a folder, a short name, a Hub id or "demo"; adapters: adapter_path and adapter_scale."""
    if name == "demo" and revision is not None:
        raise InputError("the demo comes with the package and has no revisions: leave out the revision")
    advice = "take fewer --prompt-tokens or a smaller --batch-size"
    adapt, count = adapting(**adapters), counting(adapters.get("adapter_path"))
    needs: dict[str, Any] = {"context": settings.context, "rows": settings.batch_size, "adapters": count}
    place = place_experts(experts_in_memory, **needs)
    fits = fit_check(name, **needs, experts_in_memory=experts_in_memory, advice=advice)

    def check(config: ModelConfig, headers: Headers) -> None:
        settings.check_context(config)
        fits(config, headers)

    folder = DEMO if name == "demo" else resolve(name, revision=revision, check=check)
    copied = device.copy_bandwidth()
    model, _ = load_model(folder, check=check, place=place, adapt=adapt)
    tell_experts(model)
    _bench({"model": name}, model, settings, copied, as_json=as_json)


def bench_hosts(name: str, settings: Settings, request: BenchRequest) -> None:
    """Measure a model on several hosts, and what a hop and a sum between them take."""
    found = load(
        name,
        revision=request.revision,
        context=settings.context,
        experts_in_memory=request.experts_in_memory,
        **request.on_hosts(),
    )
    tell_hosts(found[0])
    settings.check_context(found[0].config)
    folder = Path(name).expanduser()
    subject = folder.resolve().name if folder.is_dir() else name  # in a report to be shared, no path
    _bench({"model": subject}, found[0], settings, None, as_json=request.as_json)


def bench_shape(name: str, settings: Settings, *, layers: int | None, bits: int, as_json: bool) -> None:
    """Measure a published model's shape, or its first `layers` layers, with random weights of `bits` bits."""
    if bits not in BITS:
        raise InputError(f"bits is {bits}: expected one of {', '.join(map(str, BITS))}")
    config = read_config(shape(name, layers=layers))
    settings.check_context(config)
    stored_bits = None if bits == 16 else bits
    check_shape(name, config, bits=stored_bits, context=settings.context, rows=settings.batch_size)
    copied = device.copy_bandwidth()
    with progress_bar("making random weights") as show:
        model = random_model(config, bits=stored_bits, on_progress=show)
    subject = {"shape": name, "layers": config.num_hidden_layers, "bits": bits}
    _bench(subject, model, settings, copied, as_json=as_json)


def _bench(
    subject: Mapping[str, Any], model: CausalLM, settings: Settings, copied: float | None, *, as_json: bool
) -> None:
    """Run the trials and print what they gave; copied: bytes a second of a copy on this device, if all is here."""
    shape = (settings.batch_size, settings.prompt_tokens)
    prompts = mx.random.randint(0, model.config.vocab_size, shape, key=mx.random.key(0))
    step_size = settings.prefill_step_size or device.prefill_step(0)
    settings = replace(settings, prefill_step_size=step_size)
    trials = []
    device.reset_peak_memory()
    with device.resident():
        note("Warming up", dim=True)
        run_trial(model, prompts, min(settings.generation_tokens, WARM_UP), step_size)
        before = copy.copy(model.expert_reads)
        for count in range(1, settings.num_trials + 1):
            trial, cache = run_trial(model, prompts, settings.generation_tokens, step_size)
            speeds = f"prompt {trial.prompt_tps:.1f} tokens/s, generation {trial.generation_tps:.1f} tokens/s"
            note(f"Trial {count} of {settings.num_trials}: {speeds}", dim=True)
            trials.append(trial)
    result = _summary(subject, settings, trials)
    if copied is not None:
        reads = bytes_per_token(model, cache, settings.prompt_tokens + settings.generation_tokens // 2)
        result |= _bandwidth(reads, result["generation_tps"], copied)
    if model.beyond is not None:
        result["hosts"] = _hosts(model.beyond)
    if model.reads_experts:
        prompts_read = sum((trial.prompt_reads for trial in trials), ExpertReads())
        answers = model.expert_reads - before - prompts_read
        result["experts"] = figures(answers, settings.num_trials * settings.generation_tokens)
        result["experts"]["prompt_bytes_read"] = prompts_read.bytes_read // settings.num_trials
    if as_json:
        write_json(result, indent=2)
    else:
        write(_table(result))


def run_trial(model: CausalLM, prompts: mx.array, generation_tokens: int, step_size: int) -> tuple[Trial, Cache]:
    """Run prompts (B, L) and so many steps after them, greedily; the speeds, and the cache they leave behind."""
    cache = model.make_cache()
    batch, length = prompts.shape
    limit = generation_tokens + 1  # the prompt gives the first
    before = copy.copy(model.expert_reads)
    began = time.perf_counter()
    steps: Iterator[Any]
    if batch == 1:
        logits = prefill(model, prompts[0].tolist(), cache, step_size=step_size)  # type: ignore[arg-type]
        steps = decode(model, logits, cache, make_sampler(SamplingOptions()), limit=limit)
    else:
        steps = decode_rows(model, prefill_rows(model, prompts, cache, step_size=step_size), cache, limit=limit)
    prompt_reads = model.expert_reads - before
    next(steps)
    first = time.perf_counter()
    for _ in steps:
        pass
    seconds = time.perf_counter() - first
    return Trial(batch * length / (first - began), batch * generation_tokens / seconds, prompt_reads), cache


def prefill_rows(model: CausalLM, prompts: mx.array, cache: Cache, *, step_size: int) -> mx.array:
    """`prefill` for several prompts of one length: (B, L) ids -> logits (B, vocab)."""
    for start in range(0, prompts.shape[1], step_size):
        end = min(start + step_size, prompts.shape[1])  # a step may be more than MLX can count
        logits = model(prompts[:, start:end], cache=cache, logits_to_keep=1)
        mx.eval(cache.arrays)
        mx.clear_cache()
    return logits[:, -1]


def decode_rows(model: CausalLM, logits: mx.array, cache: Cache, *, limit: int) -> Iterator[list[int]]:
    """`decode`, greedily, for several rows: the tokens of each of `limit` steps, the next already under way."""
    tokens = mx.argmax(logits, axis=-1)
    mx.async_eval(tokens)
    for _ in range(1, limit):
        following = mx.argmax(model(tokens[:, None], cache=cache)[:, -1], axis=-1)
        mx.async_eval(following)
        yield tokens.tolist()  # type: ignore[misc]
        tokens = following
    yield tokens.tolist()  # type: ignore[misc]


def bytes_per_token(model: CausalLM, cache: Cache, context: int) -> Reads:
    """What one token of a decode step reads of a loaded model and of its cache, `context` tokens in.

    Rows share a step's weights: of the experts, as many are read as so many rows choose if each chooses at random.
    """
    config, batch = model.config, cache.batch_size or 1
    chosen = config.num_experts * (1 - (1 - config.num_experts_per_tok / config.num_experts) ** batch)
    weights = 0.0
    for name, array in dict(tree_flatten(model.parameters())).items():
        share = 1.0
        if ".experts." in name or ".switch_mlp." in name:
            shared = array.shape[0] - config.num_experts
            share = (chosen + shared) / array.shape[0]
        elif name.startswith("model.embed_tokens.") and "lm_head" in model:
            share = min(batch / config.vocab_size, 1)
        weights += share * array.nbytes
    weights += sum((config.num_experts_per_tok + pool.pinned) * pool.expert_bytes for pool in model.expert_pools)
    histories = [getattr(layer, "history", None) for layer in cache.layers]
    columns = [context if history is None else min(context, history + 1) for history in histories]
    held = sum(
        array.nbytes // array.shape[-2] * count
        for layer, count in zip(cache.layers, columns, strict=True)
        for array in layer.arrays
    )
    return Reads(round(weights / batch), round(held / batch))


def _hosts(beyond: Any) -> dict[str, Any]:
    """Layers of each host, without their names, and the seconds of a hop and of a sum: a report to be shared."""
    from ..hosts.versions import versions

    counts = [len(part) for _, part in beyond.parts]
    return {
        "layers": counts,
        "devices": list(beyond.devices),
        "backend": beyond.backend,
        "hop_seconds": beyond.probe("hop") / len(counts),
        "sum_seconds": beyond.probe("sum"),
        "versions": dict(zip(("afmoe-mlx", "mlx"), versions(), strict=True)),
    }


def _bandwidth(reads: Reads, generation_tps: float, copied: float) -> dict[str, Any]:
    bandwidth = (reads.weights + reads.cache) * generation_tps
    return {
        "bytes_per_token": reads.weights + reads.cache,
        "weight_bytes_per_token": reads.weights,
        "cache_bytes_per_token": reads.cache,
        "bandwidth_bytes_per_second": bandwidth,
        "copy_bytes_per_second": copied,
        "bandwidth_fraction": bandwidth / copied,
    }


def _summary(subject: Mapping[str, Any], settings: Settings, trials: Sequence[Trial]) -> dict[str, Any]:
    return {
        **subject,
        "device": {"name": device.device_name(), "backend": device.backend()},
        **asdict(settings),
        "trials": [{"prompt_tps": t.prompt_tps, "generation_tps": t.generation_tps} for t in trials],
        "prompt_tps": median(trial.prompt_tps for trial in trials),
        "generation_tps": median(trial.generation_tps for trial in trials),
        "peak_memory_gb": device.peak_memory() / 1e9,
    }


def _table(result: Mapping[str, Any]) -> str:
    """The summary for a person: one figure a line, the medians of the trials with their range."""
    trials = result["trials"]

    def speed(name: str) -> str:
        speeds = [trial[f"{name}_tps"] for trial in trials]
        spread = f"  ({min(speeds):.1f} to {max(speeds):.1f})" if len(speeds) > 1 else ""
        return f"{result[f'{name}_tps']:10.1f} tokens/s{spread}"

    rows = f" × {result['batch_size']} rows" if result["batch_size"] > 1 else ""
    lines = [
        f"{_title(result)} on {result['device']['name']} ({result['device']['backend']})",
        f"Prompt          {speed('prompt')}  {result['prompt_tokens']} tokens{rows}",
        f"Generation      {speed('generation')}  {result['generation_tokens']} tokens{rows}",
        f"Peak memory     {result['peak_memory_gb']:10.3f} GB",
    ]
    if "bytes_per_token" in result:
        parts = f"weights {size(result['weight_bytes_per_token'])}, cache {size(result['cache_bytes_per_token'])}"
        copied = f"{result['bandwidth_fraction']:.0%} of a copy's {result['copy_bytes_per_second'] / 1e9:.1f} GB/s"
        lines += [
            f"Read per token  {result['bytes_per_token'] / 1e9:10.3f} GB  ({parts})",
            f"Bandwidth       {result['bandwidth_bytes_per_second'] / 1e9:10.1f} GB/s  ({copied})",
        ]
    if (hosts := result.get("hosts")) is not None:
        lines += [
            f"Layers          {' + '.join(map(str, hosts['layers']))} on {len(hosts['layers'])} hosts",
            f"A hop           {hosts['hop_seconds'] * 1e6:10.0f} µs over {hosts['backend']}, of 8 kB",
            f"A sum           {hosts['sum_seconds'] * 1e6:10.0f} µs",
        ]
    if (read := result.get("experts")) is not None:
        lines.append(f"Experts         {in_words(read)}; {size(read['prompt_bytes_read'])} for a prompt")
    return "\n".join(lines) + "\n"


def _title(result: Mapping[str, Any]) -> str:
    if "shape" not in result:
        return str(result["model"])
    return f"{result['shape']}, {result['layers']} layers of random weights in {result['bits']} bits,"
