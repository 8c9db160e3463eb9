"""An evaluation gives what float64 arithmetic on both models' logits gives, one model in memory at a time."""

import gc
import json
import math
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import packed, stacked, write
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten
from tiny import ARCHITECTURES, BASES, TEMPLATE, tiny, tiny_folder
from tiny_tokenizers import byte_level, metaspace, save

from afmoe_mlx import device, load_model
from afmoe_mlx.checkpoint import open_model
from afmoe_mlx.checkpoint.quantized import quantize_all
from afmoe_mlx.checkpoint.save import save_weights
from afmoe_mlx.conversion.stored import SourceReader
from afmoe_mlx.errors import CheckpointError, InputError
from afmoe_mlx.evaluation import DEFAULT_TEXT, Evaluation, activations, divergence, evaluate, matrices, weight_error
from afmoe_mlx.evaluation.activations import Spill
from afmoe_mlx.evaluation.divergence import overlap
from afmoe_mlx.evaluation.evaluation import quantile
from afmoe_mlx.evaluation.matrices import Matrices
from afmoe_mlx.evaluation.pipeline import read_sequences
from afmoe_mlx.evaluation.subject import Subject
from afmoe_mlx.evaluation.weight_error import CLASSES, weight_errors
from afmoe_mlx.models import CausalLM, Trace
from afmoe_mlx.tokenizer import Tokenizer

TEXT = "hello, hello to the world; the world says: " + "".join(chr(33 + i * 7 % 90) for i in range(150))
LENGTH = 33
AFFINE = {"bits": 4, "group_size": 32, "mode": "affine"}


def quantized_folder(folder: Path, model_type: str, parameters: dict[str, Any] = AFFINE, **changes: Any) -> Path:
    """What `tiny_folder` makes, quantized."""
    tokenizer = byte_level()
    changes = {"vocab_size": tokenizer.get_vocab_size()} | changes
    model = tiny(model_type, **changes)
    quantize_all(model, parameters)
    config = {"model_type": model_type} | BASES[model_type] | changes
    files = {"tokenizer_config": {"chat_template": TEMPLATE, "eos_token": "<|im_end|>"}}
    save(folder, tokenizer, config=config | {"quantization": parameters}, **files)
    save_weights(folder, dict(tree_flatten(model.parameters())))
    return folder


class Pair:
    """A plain tiny model and its 4-bit form, a text, and the sequences that it is cut into."""

    def __init__(self, folder: Path, model_type: str) -> None:
        self.plain = tiny_folder(folder / "plain", model_type)
        self.quantized = quantized_folder(folder / "quantized", model_type)
        self.text = folder / "text.txt"
        self.text.write_text(TEXT)
        ids = Tokenizer.from_folder(self.plain).encode(TEXT)
        self.sequences = [ids[i : i + LENGTH] for i in range(0, len(ids), LENGTH)]

    def evaluate(self, **options: Any) -> Evaluation:
        options = {"reference": self.plain, "text": self.text, "sequence_length": LENGTH} | options
        return evaluate(self.quantized, **options)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(tmp_path_factory.mktemp("pair"), request.param)


@pytest.fixture(scope="module")
def afmoe(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(tmp_path_factory.mktemp("afmoe"), "afmoe")


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
    found = pair.evaluate()
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
    found = pair.evaluate()
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
    whole = pair.evaluate()
    monkeypatch.setattr(divergence, "PIECE", 3 * 280)
    monkeypatch.setattr(matrices, "PIECE", 7 * 32)
    parts = pair.evaluate()
    assert parts.divergences == pytest.approx(whole.divergences, abs=1e-6)
    assert parts.perplexity == pytest.approx(whole.perplexity, rel=1e-6)
    assert parts.expert_overlap_by_layer == pytest.approx(whole.expert_overlap_by_layer, abs=1e-6)
    assert parts.weight_errors == pytest.approx(whole.weight_errors, rel=1e-5)


def test_without_a_reference_there_are_perplexity_and_bits_alone(pair: Pair) -> None:
    alone, compared = pair.evaluate(reference=None), pair.evaluate()
    assert alone.perplexity == compared.perplexity
    assert alone.bits_per_weight == compared.bits_per_weight
    found = alone.to_json()
    needs_reference = {"kl_mean", "kl_median", "kl_p99", "top1_agreement", "expert_overlap", "weight_errors"}
    assert {name for name, value in found.items() if value is None} >= needs_reference
    assert "divergences" not in compared.to_json()
    json.dumps(compared.to_json(), allow_nan=False)


def test_bits_are_those_of_all_that_is_stored_for_each_weight_unquantized(pair: Pair) -> None:
    found = pair.evaluate()
    weights = mx.load(str(next(pair.plain.glob("*.safetensors"))))
    stored = mx.load(str(next(pair.quantized.glob("*.safetensors"))))
    count = sum(array.size for array in weights.values())
    assert found.reference_bits_per_weight == 32
    assert found.bits_per_weight == pytest.approx(8 * sum(array.nbytes for array in stored.values()) / count)


def test_models_without_routed_experts_have_no_overlap(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "dense", num_dense_layers=4)
    (tmp_path / "a.txt").write_text(TEXT)
    found = evaluate(folder, reference=folder, text=tmp_path / "a.txt")
    assert found.expert_overlap is found.expert_overlap_by_layer is None
    assert found.kl_mean == 0


# Memory and disk


def test_one_layer_is_in_memory_at_a_time(tmp_path: Path) -> None:
    shape = {"num_hidden_layers": 24, "hidden_size": 64, "moe_intermediate_size": 64}
    folder = tiny_folder(tmp_path / "deep", **shape)
    (tmp_path / "a.txt").write_text(TEXT)
    stored = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    gc.collect()
    held = mx.get_active_memory()
    device.reset_peak_memory()
    evaluate(folder, reference=folder, text=tmp_path / "a.txt", sequence_length=LENGTH)
    assert stored > 5_000_000
    assert device.peak_memory() - held < stored / 4


@pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("step", [1, 9, 15])
def test_nothing_is_left_on_disk_whatever_stops_it_not_even_a_name_meanwhile(
    afmoe: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, stop: type[BaseException]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    spills: list[Spill] = []
    monkeypatch.setattr(Spill, "__enter__", lambda self: spills.append(self) or self)

    def progress(done: int, total: int) -> None:
        assert list(tmp_path.iterdir()) == []
        if done == step:
            assert spills[0]._end > 0
            raise stop

    with pytest.raises(stop):
        afmoe.evaluate(on_progress=progress)
    assert list(tmp_path.iterdir()) == []
    assert spills[0]._file.closed


@given(
    st.lists(st.tuples(st.sampled_from(["bfloat16", "float16", "float32", "uint32"]), st.integers(1, 9)), max_size=6)
)
@settings(max_examples=30, deadline=None)
def test_what_is_spilled_comes_back_as_it_was(arrays: list[tuple[str, int]]) -> None:
    made = [(mx.arange(rows * 6).reshape(rows, 6).T * 1.37).astype(getattr(mx, dtype)) for dtype, rows in arrays]
    with Spill() as spill:
        stored = [spill.write(array) for array in made]
        for place, array in reversed(list(zip(stored, made, strict=True))):
            back = spill.read(place)
            assert back.dtype == array.dtype
            assert mx.array_equal(back, array)


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


def test_a_short_name_as_the_reference_is_what_was_published(afmoe: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    find = Subject.find

    def spy(source: Any, **options: Any) -> Subject:
        seen.append(str(source))
        return find(afmoe.plain, **options)

    monkeypatch.setattr(Subject, "find", spy)
    evaluate("trinity-mini", reference="trinity-mini", text=afmoe.text, max_tokens=10)
    assert seen == ["trinity-mini", "arcee-ai/Trinity-Mini"]


# Divergence


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


# Weights

SHAPES = {"hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32}
FORMATS = [{"bits": bits, "group_size": 32, "mode": "affine"} for bits in (2, 3, 4, 5, 6, 8)] + [
    {"bits": 4, "group_size": 32, "mode": "mxfp4"},
    {"bits": 4, "group_size": 16, "mode": "nvfp4"},
    {"bits": 8, "group_size": 32, "mode": "mxfp8"},
]


@pytest.mark.parametrize("piece", [1 << 22, 5 * 64])
@pytest.mark.parametrize("parameters", FORMATS, ids=lambda p: f"{p['mode']}{p['bits']}")
@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_weight_errors_are_those_of_whole_matrices(
    tmp_path: Path, model_type: str, parameters: dict[str, Any], piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matrices, "PIECE", piece)
    folders = tiny_folder(tmp_path / "a", model_type, **SHAPES), tmp_path / "b"
    quantized_folder(folders[1], model_type, parameters, **SHAPES)
    plain, model = (open_model(folder) for folder in folders)
    sums: dict[str, np.ndarray] = {}
    for path, module in matrices.matrix_modules(model).items():
        w = np.array(plain_weight(plain, path))
        w_hat = w
        if "scales" in module:
            options = {"group_size": module.group_size, "bits": module.bits, "mode": module.mode}
            w_hat = np.array(
                mx.dequantize(module.weight, module.scales, module.get("biases"), **options).astype(mx.float32)
            )
        squares = np.array([np.square(w - w_hat, dtype=np.float64).sum(), np.square(w, dtype=np.float64).sum()])
        sums[weight_error.kind_of(path)] = sums.get(weight_error.kind_of(path), 0) + squares
    ticks: list[None] = []
    found = weight_errors(Matrices(folders[1]), Matrices(folders[0]), lambda: ticks.append(None))
    assert found == pytest.approx({kind: np.sqrt(s[0] / s[1]) for kind, s in sums.items()}, rel=1e-5, abs=1e-9)
    assert found["router"] == 0 < found["experts"]
    assert len(ticks) == len(Matrices(folders[1]))
    assert set(Matrices(folders[1])) == set(matrices.matrix_modules(model))


def plain_weight(model: CausalLM, path: str) -> mx.array:
    return dict(model.named_modules())[path].weight


def test_experts_with_a_further_scale_are_compared_with_it(tmp_path: Path) -> None:
    plain = tiny_folder(tmp_path / "a", **SHAPES)
    folder = shutil.copytree(plain, tmp_path / "b")
    model = open_model(plain)
    experts = model.model.layers[1].mlp.experts
    experts.up_proj = experts.up_proj.to_quantized(16, 4, "nvfp4", global_scale=True)
    save_weights(folder, dict(tree_flatten(model.parameters())))
    config = json.loads((folder / "config.json").read_text())
    config["quantization"] = {"bits": 4, "group_size": 16, "mode": "nvfp4"}
    (folder / "config.json").write_text(json.dumps(config))
    assert 0 < weight_errors(Matrices(folder), Matrices(plain), lambda: None)["experts"] < 0.1


@pytest.mark.parametrize("layout", [None, packed, stacked], ids=["per expert", "packed", "stacked"])
def test_an_expert_is_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: Any) -> None:
    """Of a stack of them that is larger than all else, in every layout it is stored in."""
    piece = 64 * 64
    monkeypatch.setattr(matrices, "PIECE", piece)
    shape = {"num_hidden_layers": 2, "num_experts": 256, "hidden_size": 64, "moe_intermediate_size": 64}
    shape |= {"layer_types": ["sliding_attention", "full_attention"], "num_dense_layers": 1}
    model = tiny(**shape)
    weights = {name: np.array(array) for name, array in dict(tree_flatten(model.parameters())).items()}
    config = {"model_type": "afmoe"} | BASES["afmoe"] | shape
    reference = write(tmp_path / "a", config, per_expert(weights), layout=layout)
    other = write(tmp_path / "b", config, per_expert({n: w + 0.01 for n, w in weights.items()}), layout=stacked)
    stack = weights["model.layers.1.mlp.experts.up_proj.weight"].nbytes
    del model, weights
    read, largest = SourceReader.read, 0

    def noted(self: SourceReader, name: str, rows: slice | None = None) -> mx.array:
        nonlocal largest
        array = read(self, name, rows)
        largest = max(largest, array.nbytes)
        return array

    monkeypatch.setattr(SourceReader, "read", noted)
    subjects = Matrices(other), Matrices(reference)
    gc.collect()
    held = mx.get_active_memory()
    device.reset_peak_memory()
    assert weight_errors(*subjects, lambda: None)["experts"] > 0
    assert largest <= 4 * piece
    assert device.peak_memory() - held < stack / 4


def per_expert(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Stacked tensors as the Hub has them, one an expert."""
    made: dict[str, np.ndarray] = {}
    for name, array in weights.items():
        if ".experts." in name:
            made |= {name.replace(".experts.", f".experts.{i}."): expert for i, expert in enumerate(array)}
        else:
            made[name] = array
    return made


@pytest.mark.parametrize(
    ("model_type", "kinds"),
    [
        ("afmoe", {"embeddings", "head", "router", "experts", "shared", "attention", "dense"}),
        ("lfm2_moe", {"embeddings", "router", "experts", "attention", "convolution", "dense"}),
    ],
)
def test_every_matrix_has_a_class(model_type: str, kinds: set[str]) -> None:
    model = tiny(model_type)
    paths = matrices.matrix_modules(model)
    assert {weight_error.kind_of(path) for path in paths} == kinds <= CLASSES.keys()
    named = {
        name.rpartition(".")[0] for name, array in dict(tree_flatten(model.parameters())).items() if array.ndim > 1
    }
    assert paths.keys() == named


# Text


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


# Mistakes


def short_text(pair: Pair, folder: Path) -> dict[str, Any]:
    (folder / "short.txt").write_text("a")
    return {"text": folder / "short.txt"}


def other_model(model_type: str = "afmoe", **changes: Any) -> Callable[[Pair, Path], dict[str, Any]]:
    return lambda pair, folder: {"reference": tiny_folder(folder / "other", model_type, **changes)}


def other_tokenizer(make: Callable[[], Any]) -> Callable[[Pair, Path], dict[str, Any]]:
    def with_tokenizer(pair: Pair, folder: Path) -> dict[str, Any]:
        shutil.copytree(pair.plain, folder / "other")
        make().save(str(folder / "other" / "tokenizer.json"))
        return {"reference": folder / "other"}

    return with_tokenizer


def exchanged() -> Any:
    """The byte-level tokenizer with two of its letters' ids exchanged."""
    from tokenizers import Tokenizer as Backend

    made = json.loads(byte_level().to_str())
    vocab = made["model"]["vocab"]
    vocab["h"], vocab["w"] = vocab["w"], vocab["h"]
    return Backend.from_str(json.dumps(made))


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (short_text, "no two tokens in a row"),
        (lambda pair, folder: {"sequence_length": 513}, "sequence_length is 513: expected 512 at most"),
        (lambda pair, folder: {"sequence_length": 1}, "sequence_length is 1: expected 2 or more"),
        (lambda pair, folder: {"max_tokens": 1}, "max_tokens is 1: expected 2 or more"),
        (other_model("lfm2_moe"), "the reference is Lfm2Moe, the model Afmoe"),
        (other_model(num_experts=5), "the reference's num_experts is 5, the model's 6"),
        (other_model(num_hidden_layers=5), "the reference's num_hidden_layers is 5, the model's 4"),
        (other_model(vocab_size=300), "the reference's vocab_size is 300"),
        (other_tokenizer(metaspace), "the reference's tokenizer knows 10 tokens, the model's 278"),
        (other_tokenizer(exchanged), "the reference's tokenizer means other tokens"),
    ],
)
def test_a_mistake_is_named_in_one_line_before_a_model_is_loaded(
    afmoe: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any, found: str
) -> None:
    monkeypatch.setattr(Subject, "open", lambda _: pytest.fail("loaded"))
    options = change(afmoe, tmp_path)
    with pytest.raises(InputError, match=found) as error:
        afmoe.evaluate(**options)
    assert "\n" not in str(error.value)


def test_ids_beyond_the_models_vocabulary_are_refused(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "small", vocab_size=40)
    with pytest.raises(InputError, match=r"its tokenizer gives the id .*: expected below 40"):
        evaluate(folder)


@pytest.mark.parametrize("is_reference", [False, True])
def test_logits_that_are_no_numbers_are_an_error(afmoe: Pair, tmp_path: Path, is_reference: bool) -> None:
    shutil.copytree(afmoe.plain, tmp_path / "broken")
    (path,) = (tmp_path / "broken").glob("*.safetensors")
    weights = mx.load(str(path))
    weights["model.norm.weight"] = weights["model.norm.weight"] * math.nan
    mx.eval(weights)
    mx.save_safetensors(str(path), weights)
    models = (
        {"source": afmoe.plain, "reference": tmp_path / "broken"} if is_reference else {"source": tmp_path / "broken"}
    )
    with pytest.raises(CheckpointError, match="broken: its logits are no numbers"):
        evaluate(**models, text=afmoe.text)
