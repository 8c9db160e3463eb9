"""What a call refuses, and what it promises about inputs that are allowed."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from afmoe_mlx.errors import InputError
from afmoe_mlx.models import Trace
from afmoe_mlx.models.trace import KINDS
from helpers.tiny import ARCHITECTURES, tiny, tokens

TOLERANCE = 2e-5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "input_ids or inputs_embeds"),
        ({"input_ids": mx.zeros((1, 2), mx.int32), "inputs_embeds": mx.zeros((1, 2, 32))}, "one of them"),
        ({"input_ids": mx.zeros((2,), mx.int32)}, r"\(batch, length\)"),
        ({"input_ids": mx.zeros((1, 2))}, "float32"),
        ({"input_ids": mx.zeros((0, 3), mx.int32)}, "no tokens"),
        ({"input_ids": mx.zeros((1, 3), mx.int32), "logits_to_keep": True}, "logits_to_keep"),
        ({"input_ids": mx.zeros((1, 3), mx.int32), "logits_to_keep": mx.array(3)}, "logits_to_keep"),
        ({"input_ids": mx.zeros((1, 3), mx.int32), "logits_to_keep": mx.array([True, False, True])}, "logits_to_keep"),
        ({"input_ids": mx.zeros((1, 0), mx.int32)}, "no tokens"),
        ({"inputs_embeds": mx.zeros((1, 2, 31))}, r"\(batch, length, 32\)"),
        ({"input_ids": mx.zeros((1, 3), mx.int32), "attention_mask": mx.ones((1, 2))}, r"\(1, 3\)"),
        ({"input_ids": mx.zeros((1, 3), mx.int32), "attention_mask": mx.ones((3,))}, "attention_mask"),
        ({"input_ids": mx.zeros((1, 3), mx.int32), "position_ids": mx.zeros((1, 2), mx.int32)}, "position_ids"),
        ({"input_ids": mx.zeros((1, 3), mx.int32), "labels": mx.zeros((1, 2), mx.int32)}, "labels"),
        ({"input_ids": mx.zeros((1, 3), mx.int32), "logits_to_keep": -1}, "logits_to_keep"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(arguments: dict[str, mx.array], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        tiny()(**arguments)
    assert "\n" not in str(caught.value)


def test_padding_after_the_first_chunk_is_refused() -> None:
    model = tiny()
    cache = model.make_cache()
    model(tokens(1, 4), cache=cache)
    with pytest.raises(InputError, match="first"):
        model(tokens(1, 2), attention_mask=mx.array([[1, 0]]), cache=cache)
    model(tokens(1, 2), attention_mask=mx.array([[1, 1]]), cache=cache)
    model(tokens(1, 1), attention_mask=mx.ones((1, 7)), cache=cache)
    assert cache.offset == 7
    with pytest.raises(InputError, match="another padding"):
        model(tokens(1, 1), attention_mask=mx.array([[0] + [1] * 7]), cache=cache)


def test_a_gap_within_a_row_is_allowed_in_one_shot_and_refused_with_a_cache() -> None:
    model, ids, mask = tiny(), tokens(1, 4), mx.array([[1, 0, 1, 1]])
    assert np.isfinite(np.array(model(ids, attention_mask=mask))).all()
    with pytest.raises(InputError, match="gap"):
        model(ids, attention_mask=mask, cache=model.make_cache())


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@pytest.mark.parametrize("cached", [False, True])
def test_padded_positions_are_finite_even_in_a_row_of_padding_alone(model_type: str, cached: bool) -> None:
    model = tiny(model_type)
    mask = mx.array([[0] * 5, [0, 0, 1, 1, 1], [1, 1, 1, 0, 0]])
    logits = model(tokens(3, 5), attention_mask=mask, cache=model.make_cache() if cached else None)
    assert np.isfinite(np.array(logits)).all()


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_padding_of_both_sides_and_a_long_first_chunk_equal_each_row_alone(model_type: str) -> None:
    model, ids, more = tiny(model_type), tokens(3, 60), tokens(3, 8, seed=9)
    mask = np.zeros((3, 60), np.int64)
    mask[0, 2:50] = mask[1, :9] = mask[2, 57:] = 1
    cache = model.make_cache(2)
    first = np.array(model(ids, attention_mask=mx.array(mask), cache=cache))
    rest = np.array(mx.concatenate([model(more[:, :5], cache=cache), model(more[:, 5:], cache=cache)], axis=1))
    for row in range(3):
        real = np.array(ids)[row][mask[row] == 1]
        alone = np.array(model(mx.array(np.concatenate([real, np.array(more)[row]])[None])))[0]
        assert np.abs(np.concatenate([first[row][mask[row] == 1], rest[row]]) - alone).max() < TOLERANCE


def test_rows_that_all_end_in_padding_equal_each_row_alone_with_a_cache() -> None:
    model, ids, more = tiny(), tokens(2, 6), tokens(2, 2, seed=9)
    cache = model.make_cache()
    model(ids, attention_mask=mx.array([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0]]), cache=cache)
    rest = model(more, cache=cache)
    for row, length in enumerate((4, 5)):
        alone = model(mx.concatenate([ids[row, :length], more[row]])[None])[0, length:]
        assert mx.allclose(rest[row], alone, atol=TOLERANCE)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_embeddings_of_several_rows_give_the_logits_of_their_ids(model_type: str) -> None:
    model, ids = tiny(model_type), tokens(2, 5)
    cache = model.make_cache()
    given = [model(inputs_embeds=model.embed(part), cache=cache) for part in (ids[:, :2], ids[:, 2:])]
    assert mx.allclose(mx.concatenate(given, axis=1), model(ids), atol=TOLERANCE)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_a_padded_batch_rewinds_no_further_than_its_shortest_row(model_type: str) -> None:
    model, ids = tiny(model_type), tokens(2, 6)
    cache = model.make_cache()
    model(ids, attention_mask=mx.array([[0, 0, 0, 0, 1, 1], [1] * 6]), cache=cache)
    assert cache.rewindable == 2
    again = model(tokens(2, 3, seed=1), cache=cache)
    cache.rewind(3)
    assert mx.allclose(model(tokens(2, 3, seed=1), cache=cache), again, atol=TOLERANCE)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_position_ids_that_follow_the_cache_change_nothing(model_type: str) -> None:
    model, ids = tiny(model_type), tokens(2, 9)
    cache = model.make_cache()
    model(ids[:, :5], cache=cache)
    expected = model(ids)[:, 5:]
    given = model(ids[:, 5:], position_ids=mx.arange(5, 9)[None], cache=cache)
    assert mx.allclose(given, expected, atol=TOLERANCE)


def test_a_plain_token_needs_no_mask() -> None:
    from afmoe_mlx.models.attention import causal_mask

    assert causal_mask(1, 30, window=30) is None
    assert causal_mask(1, 30) is None
    assert causal_mask(5, 30) == "causal"


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_a_forward_can_be_compiled(model_type: str) -> None:
    """Nothing in it waits for the device, a mask included: within a trace every host read of an array is an error."""
    model, ids, mask = tiny(model_type), tokens(2, 9), mx.array([[0] * 3 + [1] * 6, [1] * 9])
    compiled = mx.compile(lambda ids, mask: model(ids, attention_mask=mask))
    assert compiled(ids, mask).shape == (2, 9, 40)


def test_a_compiled_forward_takes_ids_and_masks_as_they_are_given() -> None:
    """None is a constant of the trace. One layer, for every kernel is compiled."""
    model = tiny("lfm2_moe", num_hidden_layers=1, num_dense_layers=1, layer_types=["full_attention"])
    compiled = mx.compile(lambda ids, mask: model(ids, attention_mask=mask))
    for seed, padding in enumerate(([3, 0], [0, 5])):
        ids, mask = tokens(2, 9, seed=seed), mx.array([[0] * n + [1] * (9 - n) for n in padding])
        assert mx.allclose(compiled(ids, mask), model(ids, attention_mask=mask), atol=TOLERANCE)


def test_columns_to_keep_may_differ_by_row() -> None:
    model, ids = tiny(), tokens(2, 9)
    logits = model(ids)
    kept = model(ids, logits_to_keep=mx.array([[1, 5], [3, 7]]))
    assert mx.allclose(kept, mx.stack([logits[0, mx.array([1, 5])], logits[1, mx.array([3, 7])]]), atol=TOLERANCE)
    assert mx.allclose(model(ids, logits_to_keep=np.int64(3)), logits[:, -3:], atol=TOLERANCE)


def test_the_loss_of_a_single_token_is_undefined() -> None:
    ids = tokens(1, 1)
    assert np.isnan(tiny()(ids, labels=ids)[0].item())


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_trace_keeps_what_it_was_asked_for_and_nothing_else(model_type: str, kind: str) -> None:
    model, ids = tiny(model_type), tokens(1, 9)
    whole, some = Trace(), Trace(keep=[kind])
    model(ids, trace=whole)
    model(ids, trace=some)
    assert [name for name in KINDS if getattr(some, name)] == [kind]
    for found, expected in zip(getattr(some, kind), getattr(whole, kind), strict=True):
        assert mx.abs(found.astype(mx.float32) - expected.astype(mx.float32)).max() < TOLERANCE


def test_a_trace_without_attention_weights_leaves_attention_to_its_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("afmoe_mlx.models.chunk.attend_plain", None)
    model = tiny()
    trace = Trace(keep=["hidden_states"])
    model(tokens(1, 9), trace=trace)
    assert len(trace.hidden_states) == len(model.model.layers) + 1


@pytest.mark.parametrize("keep", ["hidden_states", ["logits"]])
def test_a_trace_of_what_there_is_not_is_refused(keep: Any) -> None:
    with pytest.raises(InputError, match="expected some of hidden_states, router_logits"):
        Trace(keep=keep)
