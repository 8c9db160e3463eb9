"""What quantized keys and values save and cost: `python benchmarks/kv_memory.py`

Bytes a token of the published shapes' caches at 32,768 tokens; and, for the built-in demo reading a long conversation
of its own kind, how far its predictions move: the mean KL divergence from those of an unquantized cache, in nats, and
how often the likeliest token is another.
"""

import mlx.core as mx

from afmoe_mlx import load
from afmoe_mlx.cache import Cache, KVQuantization
from afmoe_mlx.demo.corpus import Writer
from afmoe_mlx.models import CausalLM, make_model, read_config
from afmoe_mlx.models.shapes import SHAPES, shape

CONTEXT, LENGTH, STEP = 32_768, 4000, 250
BITS = (None, 8, 6, 5, 4, 3, 2)


def cache_bytes(name: str, bits: int | None) -> tuple[float, float]:
    """Bytes a token of the full layers, and megabytes of all others, in bfloat16, for CONTEXT tokens."""
    config = read_config(shape(name))
    model = make_model(config)
    model.kv_quantization = None if bits is None else KVQuantization(bits)
    cache = model.make_cache()
    full = other = 0
    for kind, layer in zip(config.layer_types, cache.layers, strict=True):
        size = config.hidden_size if kind == "conv" else config.head_dim
        heads = () if kind == "conv" else (config.num_key_value_heads,)
        new = [mx.zeros((1, *heads, 1024, size), mx.bfloat16)] * (1 if kind == "conv" else 2)
        for _ in range(CONTEXT // 1024 if kind != "full_attention" else 1):
            layer.update(*new)
        mx.eval(layer.arrays)
        if kind == "full_attention":
            full += layer.nbytes / 1024
        else:
            other += layer.nbytes
    return full, other / 1e6


def conversation(model: CausalLM, tokenizer: object) -> mx.array:
    """(1, LENGTH) tokens of dialogues that the demo might have had."""
    tokens: list[int] = []
    for messages in Writer(seed=12345).dialogues():
        tokens += tokenizer.apply_chat_template(messages, add_generation_prompt=False)  # type: ignore[attr-defined]
        if len(tokens) >= LENGTH:
            return mx.array([tokens[:LENGTH]])
    raise AssertionError("dialogues have no end")


def predictions(model: CausalLM, ids: mx.array, cache: Cache) -> mx.array:
    """Log-probabilities (LENGTH, vocab) read in chunks."""
    parts = []
    for start in range(0, ids.shape[1], STEP):
        logits = model(ids[:, start : start + STEP], cache=cache)[0].astype(mx.float32)
        parts.append(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
        mx.eval(parts)
    return mx.concatenate(parts)


def main() -> None:
    print(f"bytes a token of full layers, and MB of the others, bfloat16, {CONTEXT:,} tokens, groups of 64")
    for name in SHAPES:
        cells = []
        for bits in BITS:
            full, other = cache_bytes(name, bits)
            cells.append(f"{bits or 16:2} bits: {full:8.0f} B ({(full * CONTEXT / 1e6 + other):7.0f} MB in all)")
        print(f"{name:14} {'   '.join(cells)}   others {other:.0f} MB")
    model, tokenizer = load("demo")
    ids = conversation(model, tokenizer)
    plain = predictions(model, ids, model.make_cache())
    print(f"\nthe demo over {LENGTH} tokens, groups of 32: KL to unquantized, and other likeliest tokens, by position")
    for bits in BITS[1:]:
        model.kv_quantization = KVQuantization(bits, 32)
        found = predictions(model, ids, model.make_cache())
        kl = (mx.exp(plain) * (plain - found)).sum(axis=-1)
        other = mx.argmax(plain, axis=-1) != mx.argmax(found, axis=-1)
        for first, last in ((0, 1000), (LENGTH - 1000, LENGTH)):
            share = other[first:last].mean().item()
            print(f"{bits} bits, {first:4} to {last}: {kl[first:last].mean().item():.5f} nats, {share:.2%} other")


if __name__ == "__main__":
    main()
