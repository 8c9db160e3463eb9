"""`evaluate`: an evaluation from end to end, one layer of one model in memory at a time."""

import gc
import math
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import mlx.core as mx

from ..api import adapting
from ..checkpoint.names import published
from ..errors import CheckpointError, InputError
from ..terminal import size
from ..tokenizer.samples import read_samples
from .activations import Activations, Spill, nbytes_per_token, record
from .divergence import Predictions, overlap, pieces
from .evaluation import Evaluation, quantile
from .subject import Subject
from .weight_error import weight_errors

# A mixed text written for this, which no model has been trained or calibrated on by us.
DEFAULT_TEXT = Path(__file__).parent / "held_out.txt"

SEQUENCE_LENGTH = 512


def evaluate(
    source: str | Path,
    *,
    reference: str | Path | None = None,
    text: str | Path | None = None,
    sequence_length: int = SEQUENCE_LENGTH,
    max_tokens: int | None = None,
    revision: str | None = None,
    adapter_path: str | Path | Sequence[str | Path] | None = None,
    adapter_scale: float = 1.0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Measure a model on a text, and against a reference, as a rule the model it was quantized from.

    source, reference: a folder, a short name, a Hub id or "demo"; revision and adapters are the source's. text: a
    file of text, or a .jsonl with {"text"} or {"messages"} a line; a text of the package's own by default. Each sample is cut into
    sequences of `sequence_length` tokens, each run from an empty context; max_tokens: of all sequences together.
    on_progress: called with the steps done and their number.

    One layer of one model is in memory at a time: what leads to the logits waits on disk, in a temporary file. So a
    reference may be larger than the memory. Raises InputError for a text too short and for a reference that is no
    relative of the model, and the errors of `load`.
    """
    for name, value, least in (("sequence_length", sequence_length, 2), ("max_tokens", max_tokens, 2)):
        if value is not None and value < least:
            raise InputError(f"{name} is {value}: expected {least} or more")
    subjects = [Subject.find(source, revision=revision, adapt=adapting(adapter_path, adapter_scale))]
    if reference is not None:
        subjects.append(Subject.find(published(reference)))
    model = subjects[0]
    sequences = read_sequences(DEFAULT_TEXT if text is None else text, model, sequence_length, max_tokens)
    if reference is not None:
        model.check_comparable(subjects[1], sequences)
    check_disk(subjects, sequences)
    compared = len(model.matrices()) if reference is not None else 0
    tick = Steps(on_progress, len(sequences) * (len(subjects) * model.config.num_hidden_layers + 1) + compared)
    with Spill() as spill:
        activations = [_record(subject, sequences, spill, tick) for subject in reversed(subjects)][::-1]
        predictions = _predict(subjects, activations, sequences, spill, tick)
        figures = _figures(predictions, model)
        if reference is not None:
            figures |= _divergence_figures(predictions, subjects[1])
            figures |= _overlap_figures(model, activations, spill)
    if reference is not None:
        figures["weight_errors"] = weight_errors(model.matrices(), subjects[1].matrices(), tick)
        figures["reference_bits_per_weight"] = subjects[1].bits_per_weight
    return Evaluation(
        model=model.name,
        reference=subjects[1].name if reference is not None else None,
        text="built-in" if text is None else str(text),
        sequences=len(sequences),
        tokens=len(predictions.losses),
        bits_per_weight=model.bits_per_weight,
        **figures,
    )


@dataclass
class Steps:
    """Counts the steps of an evaluation, and tells."""

    tell: Callable[[int, int], None] | None
    total: int
    done: int = 0

    def __call__(self) -> None:
        self.done += 1
        if self.tell is not None:
            self.tell(self.done, self.total)


def read_sequences(
    text: str | Path, model: Subject, sequence_length: int, max_tokens: int | None = None
) -> list[list[int]]:
    """The samples of a file, cut into sequences of at most so many tokens and at least two, `max_tokens` in all."""
    longest = model.config.max_position_embeddings
    if sequence_length > longest:
        raise InputError(f"sequence_length is {sequence_length}: expected {longest} at most, the model's context")
    samples = read_samples(text, model.tokenizer)
    left = sum(map(len, samples)) if max_tokens is None else max_tokens
    sequences: list[list[int]] = []
    for sample in samples:
        for start in range(0, len(sample), sequence_length):
            sequence = sample[start : start + min(sequence_length, left)]
            if len(sequence) > 1:
                sequences.append(sequence)
                left -= len(sequence)
    if not sequences:
        raise InputError(f"{text}: has no two tokens in a row: expected a longer text")
    known = model.config.vocab_size
    if (highest := max(map(max, sequences))) >= known:
        raise InputError(f"{model.name}: its tokenizer gives the id {highest}: expected below {known}, its vocabulary")
    return sequences


def check_disk(subjects: Sequence[Subject], sequences: Sequence[Sequence[int]]) -> None:
    """InputError if the activations of all models do not fit on the disk for temporary files."""
    each = sum(nbytes_per_token(subject.config, subject.dtype) for subject in subjects)
    needed = sum(map(len, sequences)) * each
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if needed > free:
        found = f"{folder} has {size(free)} free, the evaluation puts {size(needed)} there"
        raise InputError(f"{found}: take fewer --max-tokens (max_tokens), or set TMPDIR to a folder with more room")


def _record(
    subject: Subject, sequences: Sequence[Sequence[int]], spill: Spill, tick: Callable[[], None]
) -> Activations:
    """A model's activations, with nothing of the model in memory any more."""
    activations = record(subject.open(), sequences, spill, tick)
    gc.collect()
    mx.clear_cache()
    return activations


def _predict(
    subjects: Sequence[Subject],
    activations: Sequence[Activations],
    sequences: Sequence[Sequence[int]],
    spill: Spill,
    tick: Callable[[], None],
) -> Predictions:
    """What the heads make of the activations."""
    heads = [subject.head() for subject in subjects]
    predictions = Predictions()
    for i, tokens in enumerate(sequences):
        hidden = [spill.read(activation.hidden[i]) for activation in activations]
        targets = mx.array([*tokens[1:]])
        for rows in pieces(len(tokens) - 1, subjects[0].config.vocab_size):
            predictions.add(targets[rows], *(head(h[rows]) for head, h in zip(heads, hidden, strict=True)))
        mx.clear_cache()
        tick()
    return predictions


def _figures(predictions: Predictions, model: Subject) -> dict[str, Any]:
    return {"perplexity": _perplexity(predictions.losses, model)}


def _perplexity(losses: list[float], subject: Subject) -> float:
    if not math.isfinite(loss := fmean(losses)):
        raise CheckpointError(f"{subject.name}: its logits are no numbers: its weights are damaged, convert it again")
    return math.exp(min(loss, 700))  # the largest double is exp(709)


def _divergence_figures(predictions: Predictions, reference: Subject) -> dict[str, Any]:
    ordered = sorted(predictions.divergences)
    return {
        "reference_perplexity": _perplexity(predictions.reference_losses, reference),
        "kl_mean": fmean(ordered),
        "kl_median": quantile(ordered, 0.5),
        "kl_p99": quantile(ordered, 0.99),
        "top1_agreement": fmean(predictions.agreements),
        "divergences": tuple(predictions.divergences),
    }


def _overlap_figures(model: Subject, activations: Sequence[Activations], spill: Spill) -> dict[str, Any]:
    """Expert overlap, {} for a model without routed experts."""
    ours, theirs = (activation.experts for activation in activations)
    tokens = sum(stored.shape[0] for stored in activations[0].hidden)
    by_layer = {}
    for layer, pairs in enumerate(zip(zip(*ours, strict=True), zip(*theirs, strict=True), strict=True)):
        shared = [overlap(spill.read(a), spill.read(b)).sum().item() for a, b in zip(*pairs, strict=True)]
        by_layer[layer + model.config.num_dense_layers] = math.fsum(shared) / tokens  # type: ignore[arg-type]
    if not by_layer:
        return {}
    return {"expert_overlap": fmean(by_layer.values()), "expert_overlap_by_layer": by_layer}
