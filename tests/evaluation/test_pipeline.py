"""An evaluation holds one layer at a time, leaves nothing on disk, and refuses in one line what cannot be."""

import gc
import json
import math
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afmoe_mlx import device
from afmoe_mlx.errors import CheckpointError, InputError
from afmoe_mlx.evaluation import evaluate
from afmoe_mlx.evaluation.activations import Spill
from afmoe_mlx.evaluation.subject import Subject
from helpers.pairs import LENGTH, TEXT, Pair
from helpers.tiny import tiny_folder
from helpers.tiny_tokenizers import byte_level, metaspace


def test_models_without_routed_experts_have_no_overlap(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "dense", num_dense_layers=4)
    (tmp_path / "a.txt").write_text(TEXT)
    found = evaluate(folder, reference=folder, text=tmp_path / "a.txt")
    assert found.expert_overlap is found.expert_overlap_by_layer is None
    assert found.kl_mean == 0


def test_one_layer_is_in_memory_at_a_time(tmp_path: Path) -> None:
    shape = {"num_hidden_layers": 12, "num_experts": 16, "hidden_size": 64, "moe_intermediate_size": 64}
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


def test_a_short_name_as_the_reference_is_what_was_published(afmoe: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    find = Subject.find

    def spy(source: Any, **options: Any) -> Subject:
        seen.append(str(source))
        return find(afmoe.plain, **options)

    monkeypatch.setattr(Subject, "find", spy)
    evaluate("trinity-mini", reference="trinity-mini", text=afmoe.text, max_tokens=10)
    assert seen == ["trinity-mini", "arcee-ai/Trinity-Mini"]


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
