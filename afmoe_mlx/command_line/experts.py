"""`--experts-in-memory`: what is said of experts that are not all in memory."""

from dataclasses import replace
from typing import Any

from ..generation import GenerationChunk
from ..generation.loop import Progress
from ..models import CausalLM, ExpertReads, sweeps
from ..terminal import note, size


def tell_experts(model: CausalLM) -> None:
    """Say how many experts of a loaded model are in memory, if not all."""
    if not model.expert_pools:
        return
    slots, number = model.expert_pools[0].slots, model.config.num_experts
    layers = len(model.expert_pools)
    whole = sum(layer.sparse is not None for layer in model.layers) - layers
    others = f", all in the {whole} others" if whole else ""
    note(f"Experts: {slots} of {number} in memory in {layers} layers{others}; the rest is read as needed", dim=True)


class WatchedReads:
    """What a model reads of its experts for one answer: for the prompt, and after it."""

    def __init__(self, model: CausalLM) -> None:
        # None: all are in memory
        self._reads = model.expert_reads if sweeps(model) else None
        self._began = self._prompt = self._now

    @property
    def _now(self) -> ExpertReads:
        return ExpertReads() if self._reads is None else replace(self._reads)

    def during(self, on_progress: Progress | None = None) -> Progress:
        """The same report of progress, which also tells when the prompt is read."""

        def progress(done: int, total: int) -> None:
            if done == total:
                self._prompt = self._now
            if on_progress is not None:
                on_progress(done, total)

        return progress

    def figures(self, last: GenerationChunk | None) -> dict[str, Any]:
        """What `--json` says, given the answer's last token; empty for a model whose experts are all in memory."""
        if self._reads is None:
            return {}
        steps = 0 if last is None else last.generation_tokens - 1  # the prompt gives the first
        found = figures(self._now - self._prompt, steps)
        return {"experts": found | {"prompt_bytes_read": (self._prompt - self._began).bytes_read}}

    def short(self, last: GenerationChunk | None) -> str:
        """The same beneath an answer; "" for a model whose experts are all in memory."""
        found = self.figures(last).get("experts")
        return "" if found is None else in_words(found)

    def line(self, last: GenerationChunk | None) -> str | None:
        """The same for a person."""
        found = self.figures(last).get("experts")
        return found and f"{in_words(found)}; {size(found['prompt_bytes_read'])} for the prompt"


def figures(reads: ExpertReads, tokens: int) -> dict[str, Any]:
    """Figures of reading experts for so many tokens."""
    return {
        "hits": reads.hits,
        "misses": reads.misses,
        "hit_rate": reads.hit_rate,
        "bytes_read": reads.bytes_read,
        "bytes_per_token": reads.bytes_read / max(tokens, 1),
        "seconds_waited": reads.seconds_waited,
        "bytes_per_second": reads.bytes_per_second,
    }


def in_words(told: dict[str, Any]) -> str:
    """`figures` in a line."""
    rate = "none wanted" if told["hit_rate"] is None else f"{told['hit_rate']:.0%} of experts in memory"
    read = f"{size(round(told['bytes_per_token']))} read a token"
    speed = "" if told["bytes_per_second"] is None else f" at {told['bytes_per_second'] / 1e9:.2f} GB/s"
    return f"{rate}, {read}{speed}, {told['seconds_waited']:.1f} s waited"
