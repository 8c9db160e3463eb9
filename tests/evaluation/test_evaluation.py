"""An evaluation gives what float64 arithmetic on both models' logits gives, one model in memory at a time."""

import json
import shutil
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afmoe_mlx import load_model
from afmoe_mlx.checkpoint import open_model
from afmoe_mlx.errors import InputError
from afmoe_mlx.evaluation import DEFAULT_TEXT, activations, divergence, evaluate, matrices
from afmoe_mlx.evaluation.activations import Spill
from afmoe_mlx.evaluation.divergence import overlap
from afmoe_mlx.evaluation.evaluation import quantile
from afmoe_mlx.evaluation.pipeline import read_sequences
from afmoe_mlx.evaluation.subject import Subject
from afmoe_mlx.models import CausalLM, Trace
from helpers.pairs import LENGTH, Pair
from helpers.tiny import tiny


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def log_probabilities(model: CausalLM, tokens: list[int]) -> np.ndarray:
    """Of each predicted token, in float64, from the logits of one shot: (L - 1, vocab)."""
    return log_softmax(np.array(model(mx.array([tokens]))[0, :-1]).astype(np.float64))


def test_figures_are_those_of_float64_on_the_logits_of_both_models_in_memory(pair: Pair) -> None:
    models = [load_model(folder)[0] for folder in (pair.quantized, pair.plain)]
    log_q, log_p = (np.concatenate([log_probabilities(m, tokens) for tokens in pair.sequences]) for m in models)
    targets = np.concatenate([tokens[1:] for tokens in pair.sequences])
    kl = (np.exp(log_p) * (log_p - log_q)).sum(axis=-1)
    found = pair.evaluation
    assert found.tokens == len(targets) == len(found.divergences)
    assert found.sequences == len(pair.sequences) > 2
    rows = np.arange(len(targets))
    assert found.perplexity == pytest.approx(np.exp(-log_q[rows, targets].mean()), rel=1e-5)
    assert found.reference_perplexity == pytest.approx(np.exp(-log_p[rows, targets].mean()), rel=1e-5)
    assert kl.mean() > 1e-3
    assert np.abs(np.array(found.divergences) - kl).max() < 1e-6
    assert found.kl_mean == pytest.approx(kl.mean(), abs=1e-6)
    assert found.kl_median == pytest.approx(np.median(kl), abs=1e-6)
    assert found.kl_p99 == pytest.approx(np.percentile(kl, 99), abs=1e-6)
    agreement = (log_p.argmax(axis=-1) == log_q.argmax(axis=-1)).mean()
    assert found.top1_agreement == pytest.approx(agreement, abs=1e-9)
    assert 0.3 < agreement < 1


def test_the_overlap_of_experts_is_that_of_the_sets_chosen_layer_by_layer(pair: Pair) -> None:
    models = [load_model(folder)[0] for folder in (pair.quantized, pair.plain)]
    shared, count = np.zeros(3), 0
    for tokens in pair.sequences:
        traces = [Trace(), Trace()]
        for model, trace in zip(models, traces, strict=True):
            model(mx.array([tokens]), trace=trace)
        count += len(tokens)
        for layer, choices in enumerate(zip(*(trace.selected_experts for trace in traces), strict=True)):
            ours, theirs = (choice.tolist() for choice in choices)
            shared[layer] += sum(len(set(a) & set(b)) / 2 for a, b in zip(ours, theirs, strict=True))
    found = pair.evaluation
    assert found.expert_overlap_by_layer is not None
    assert list(found.expert_overlap_by_layer) == [1, 2, 3]
    assert list(found.expert_overlap_by_layer.values()) == pytest.approx((shared / count).tolist(), abs=1e-6)
    assert found.expert_overlap == pytest.approx((shared / count).mean(), abs=1e-6)
    assert 0.5 < (shared / count).mean() < 1


def test_a_model_is_no_distance_from_itself(pair: Pair) -> None:
    found = evaluate(pair.quantized, reference=pair.quantized, text=pair.text, sequence_length=LENGTH)
    assert (found.kl_mean, found.kl_median, found.kl_p99) == (0, 0, 0)
    assert (found.top1_agreement, found.expert_overlap) == (1, 1)
    assert found.perplexity == found.reference_perplexity
    assert found.weight_errors is not None
    assert set(found.weight_errors.values()) == {0}


def test_how_much_is_done_at_a_time_changes_nothing(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pair.evaluation
    monkeypatch.setattr(divergence, "PIECE", 3 * 280)
    monkeypatch.setattr(matrices, "PIECE", 7 * 32)
    parts = pair.evaluate()
    assert parts.divergences == pytest.approx(whole.divergences, abs=1e-6)
    assert parts.perplexity == pytest.approx(whole.perplexity, rel=1e-6)
    assert parts.expert_overlap_by_layer == pytest.approx(whole.expert_overlap_by_layer, abs=1e-6)
    assert parts.weight_errors == pytest.approx(whole.weight_errors, rel=1e-5)


def test_without_a_reference_there_are_perplexity_and_bits_alone(pair: Pair) -> None:
    alone, compared = pair.evaluate(reference=None), pair.evaluation
    assert alone.perplexity == compared.perplexity
    assert alone.bits_per_weight == compared.bits_per_weight
    found = alone.to_json()
    needs_reference = {"kl_mean", "kl_median", "kl_p99", "top1_agreement", "expert_overlap", "weight_errors"}
    assert {name for name, value in found.items() if value is None} >= needs_reference
    assert "divergences" not in compared.to_json()
    json.dumps(compared.to_json(), allow_nan=False)


def test_bits_are_those_of_all_that_is_stored_for_each_weight_unquantized(pair: Pair) -> None:
    found = pair.evaluation
    weights = mx.load(str(next(pair.plain.glob("*.safetensors"))))
    stored = mx.load(str(next(pair.quantized.glob("*.safetensors"))))
    count = sum(array.size for array in weights.values())
    assert found.reference_bits_per_weight == 32
    assert found.bits_per_weight == pytest.approx(8 * sum(array.nbytes for array in stored.values()) / count)


def test_what_a_model_computes_is_kept_in_its_own_dtype(pair: Pair) -> None:
    model, _ = load_model(pair.quantized, dtype="bfloat16")
    tokens, trace = pair.sequences[0], Trace()
    model(mx.array([tokens]), trace=trace)
    with Spill() as spill:
        found = activations.record(open_model(pair.quantized, dtype=mx.bfloat16), [tokens], spill, lambda: None)
        hidden = spill.read(found.hidden[0])
    assert hidden.dtype == mx.bfloat16
    assert mx.abs(hidden - trace.hidden_states[-1][0]).max().item() < 0.2
    assert activations.nbytes_per_token(model.config, mx.bfloat16) * len(tokens) == spill._end


def test_steps_are_counted_to_their_total(pair: Pair) -> None:
    seen: list[tuple[int, int]] = []
    pair.evaluate(on_progress=lambda done, total: seen.append((done, total)))
    total = seen[0][1]
    assert seen == [(done, total) for done in range(1, total + 1)]
    assert total > 3 * len(pair.sequences)


def test_a_full_disk_is_refused_before_anything_is_computed(afmoe: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 0))  # type: ignore[attr-defined]
    monkeypatch.setattr(Subject, "open", lambda _: pytest.fail("loaded"))
    with pytest.raises(InputError, match=r"0.0 MB free, the evaluation puts .* there: take fewer --max-tokens"):
        afmoe.evaluate()


@given(
    st.integers(0, 2**32 - 1), st.sampled_from([0.0, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0]), st.sampled_from([2, 40, 3000])
)
@settings(max_examples=40, deadline=None)
def test_divergence_is_that_of_float64_down_to_small_ones(seed: int, noise: float, vocab: int) -> None:
    random = np.random.default_rng(seed)
    logits = (4 * random.standard_normal((3, vocab))).astype(np.float32)
    other = (logits + noise * random.standard_normal((3, vocab))).astype(np.float32)
    log_p, log_q = log_softmax(logits.astype(np.float64)), log_softmax(other.astype(np.float64))
    expected = (np.exp(log_p) * (log_p - log_q)).sum(axis=-1)
    found = np.array(
        divergence.divergence(divergence._log_softmax(mx.array(logits)), divergence._log_softmax(mx.array(other)))
    )
    assert (found >= 0).all()
    assert np.abs(found - expected).max() <= 2e-7 + 1e-5 * expected.max()


def test_overlap_counts_experts_in_any_order() -> None:
    ours, theirs = mx.array([[[3, 1, 2], [0, 1, 2]]]), mx.array([[[1, 2, 3], [5, 4, 0]]])
    assert overlap(ours, theirs).tolist() == [[1.0, pytest.approx(1 / 3)]]


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=40), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_a_quantile_is_numpys(values: list[float], share: float) -> None:
    assert quantile(sorted(values), share) == pytest.approx(float(np.quantile(values, share)), rel=1e-9, abs=1e-9)


def test_perplexity_is_mlx_lms_where_all_sequences_are_of_one_length(pair: Pair) -> None:
    pytest.importorskip("mlx_lm")
    from mlx_lm.perplexity import eval_ppl

    model, _ = load_model(pair.quantized)
    whole = [tokens for tokens in pair.sequences if len(tokens) == LENGTH]
    expected, _ = eval_ppl(model, mx.array(whole), batch_size=2)
    found = pair.evaluate(reference=None, max_tokens=LENGTH * len(whole))
    assert found.perplexity == pytest.approx(expected, rel=1e-5)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=4), st.integers(2, 12), st.none() | st.integers(2, 60))
@settings(max_examples=60, deadline=None)
def test_sequences_are_the_samples_in_order_of_at_most_so_many_tokens(
    lengths: list[int], longest: int, most: int | None
) -> None:
    samples = [[10 * i + j % 10 for j in range(length)] for i, length in enumerate(lengths)]
    expected = [s[i : i + longest] for s in samples for i in range(0, len(s), longest)]
    expected = [s for s in expected if len(s) > 1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("afmoe_mlx.evaluation.pipeline.read_samples", lambda *_: samples)
        subject: Any = type("Subject", (), {"config": tiny().config, "tokenizer": None, "name": "tiny"})
        if not expected:
            with pytest.raises(InputError, match="no two tokens in a row"):
                read_sequences("text", subject, longest, most)
            return
        found = read_sequences("text", subject, longest, most)
    assert all(2 <= len(sequence) <= longest for sequence in found)
    if most is None:
        assert found == expected
        return
    assert sum(map(len, found)) <= most
    *first, last = found
    assert first == expected[: len(first)] or most < sum(lengths)
    assert any(last == sequence[: len(last)] for sequence in expected)


def test_the_packages_own_text_is_used_without_another_and_is_enough(afmoe: Pair) -> None:
    assert 15_000 < len(DEFAULT_TEXT.read_text(encoding="utf-8")) < 25_000
    found = evaluate(afmoe.plain, max_tokens=40)
    assert (found.text, found.tokens) == ("built-in", 39)
