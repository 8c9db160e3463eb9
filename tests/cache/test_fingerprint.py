"""A fingerprint tells models apart by every weight and every option that changes what is computed."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from hypothesis import given
from hypothesis import strategies as st

from afmoe_mlx.cache import fingerprint as digests
from afmoe_mlx.cache.fingerprint import fingerprint
from afmoe_mlx.models import CausalLM, fuse
from helpers.tiny import tiny

CHANGES: dict[str, Any] = {
    "one number": lambda w: mx.where(mx.arange(w.size).reshape(w.shape) == 77, w + 1e-6, w),
    "all signs": lambda w: -w,
    "rows exchanged": lambda w: w[mx.arange(w.shape[0]) ^ 1],
    "columns exchanged": lambda w: w.reshape(-1, 2, 128)[:, ::-1].reshape(w.shape),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_model_with_any_other_weight_has_another_fingerprint(change: str) -> None:
    model, other = tiny(moe_intermediate_size=256), tiny(moe_intermediate_size=256)
    assert fingerprint(model) == fingerprint(other)
    expert = other.model.layers[2].mlp.experts.down_proj
    weight = expert.weight[3]
    changed = [weight if i != 3 else CHANGES[change](weight) for i in range(6)]
    expert.weight = mx.stack([expert.weight[i] if i != 3 else changed[3] for i in range(6)])
    assert fingerprint(model) != fingerprint(other)


@given(st.integers(0, 2**32 - 1), st.integers(0, 31))
def test_words_that_differ_in_one_bit_are_mixed_to_words_that_differ_in_many(word: int, bit: int) -> None:
    first, second = digests._mixed(mx.array([word, word ^ 1 << bit], mx.uint32)).tolist()
    assert (first ^ second).bit_count() >= 3


def variants() -> dict[str, CausalLM]:
    """Models of the same shape that must not share anything."""

    def quantized(**options: Any) -> CausalLM:
        model = tiny(hidden_size=64, moe_intermediate_size=64)
        nn.quantize(
            model, class_predicate=lambda _, m: hasattr(m, "to_quantized") and m.weight.shape[-1] == 64, **options
        )
        return model

    other = tiny()
    other.lm_head.weight = other.lm_head.weight * 1.001
    wider = tiny(hidden_size=64, moe_intermediate_size=64)
    halved = tiny()
    halved.set_dtype(mx.bfloat16)
    return {
        "plain": tiny(),
        "other weights": other,
        "other theta": tiny(rope_theta=500.0),
        "other window": tiny(sliding_window=9),
        "bfloat16": halved,
        "wider": wider,
        "8 bits": quantized(bits=8, group_size=64),
        "4 bits": quantized(bits=4, group_size=64),
        "4 bits in 32s": quantized(bits=4, group_size=32),
    }


def test_two_models_or_quantizations_never_have_one_fingerprint() -> None:
    found = {name: fingerprint(model) for name, model in variants().items()}
    assert len(set(found.values())) == len(found)


def test_the_fingerprint_reads_weights_of_any_layout() -> None:
    model = tiny()
    model.lm_head.weight = mx.contiguous(model.lm_head.weight.T).T
    assert fingerprint(model) == fingerprint(tiny())
    assert fingerprint(fuse(tiny())) == fingerprint(fuse(tiny()))


def test_the_digest_of_an_array_of_more_than_two_gigabytes_is_made_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    array = mx.random.randint(0, 2**31, (1000,), key=mx.random.key(0)).astype(mx.uint32)
    monkeypatch.setattr(digests, "PIECE", 300)
    digest = digests._digest(array)
    exchanged = mx.concatenate([array[300:600], array[:300], array[600:]])
    assert not mx.array_equal(digest, digests._digest(exchanged))
    negated = mx.array([1.0, -2.0] * 64, mx.bfloat16)
    assert not mx.array_equal(digests._digest(negated), digests._digest(-negated))


def test_ctrl_c_is_heard_after_each_piece_of_a_large_array(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    whole = digests._digest_piece
    monkeypatch.setattr(digests, "PIECE", 64)
    monkeypatch.setattr(digests, "_digest_piece", lambda numbers, start: begun.append(start) or whole(numbers, start))
    evaluated = iter([None, KeyboardInterrupt()])

    def evaluate(*_: object) -> None:
        if error := next(evaluated):
            raise error

    monkeypatch.setattr(digests.mx, "eval", evaluate)
    with pytest.raises(KeyboardInterrupt):
        digests.content_digest({"a": mx.zeros((1000,))})
    assert begun == [0, 64]
