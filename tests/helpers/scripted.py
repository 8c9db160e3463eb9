"""Checkpoints that say what a test wants, for real processes too: no sampling, no patching."""

import json
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers

from afmoe_mlx.checkpoint.save import save_weights
from afmoe_mlx.models import make_model, read_config
from helpers.chat_templates import CHATML
from helpers.tiny_tokenizers import byte_level, save

END = "<|im_end|>"
# What a prompt ends with: how many answers the conversation has, or that nothing may be called.
TURN = (
    "{%- if add_generation_prompt %}"
    "{%- set said = messages | selectattr('role', 'equalto', 'assistant') | list | length %}"
    "{{- '<|turn_' ~ ([said, LAST] | min if tools or not UNARMED else LAST + 1) ~ '|>' }}"
    "{%- endif %}"
)
SMALL = {
    "intermediate_size": 8,
    "moe_intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_dense_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "num_shared_experts": 0,
    "layer_types": ["full_attention"],
}


def scripted_folder(
    folder: Path,
    answers: Sequence[str],
    *,
    template: str = CHATML,
    endless: bool = False,
    without_tools: str | None = None,
    tokenizer: Tokenizer | None = None,
    context: int = 16384,
) -> Path:
    """A whole model folder whose answers are these: the first to a conversation that has none yet, and so on; the last
    to all that are longer.

    They come in tokens of four characters, each the only one that may follow the one before it. template: the chat
    template, which ends with the generation prompt. endless: an answer begins again when it has been said.
    without_tools: the answer where no tools are offered, to whatever was said. tokenizer: what prompts are read with,
    byte-level BPE with `helpers.tiny_tokenizers.SPECIAL_TOKENS`. context: the most tokens of a prompt and its answer.
    """
    spoken = [*answers, *([] if without_tools is None else [without_tools])]
    pieces = [[answer[i : i + 4] for i in range(0, len(answer), 4)] for answer in spoken]
    tokenizer = _with_pieces(tokenizer or byte_level(), [piece for answer in pieces for piece in answer])
    turns = [f"<|turn_{i}|>" for i in range(len(spoken))]
    first = tokenizer.get_vocab_size() - sum(map(len, pieces))
    tokenizer.add_special_tokens(turns)
    ends, size = tokenizer.token_to_id(END), tokenizer.get_vocab_size()
    follows: dict[int, int] = {}
    for turn, answer in zip(turns, pieces, strict=True):
        ids = [*range(first, first := first + len(answer))]
        after = [ids[0]] if endless else [ends]
        follows |= dict(zip([tokenizer.token_to_id(turn), *ids], [*ids, *after], strict=True))
    turn = TURN.replace("LAST", str(len(answers) - 1)).replace("UNARMED", str(without_tools is not None).lower())
    sizes = {"vocab_size": size, "hidden_size": len(follows) + 1, "max_position_embeddings": context}
    config = {"model_type": "afmoe"} | SMALL | sizes
    files = {"chat_template": template + turn, "eos_token": END, "bos_token": "<s>"}
    save(folder, tokenizer, config=config, tokenizer_config=files)
    save_weights(folder, _weights(config, follows, ends))
    return folder


def _with_pieces(tokenizer: Tokenizer, pieces: Sequence[str]) -> Tokenizer:
    """The tokenizer with a token more for each piece, which no text is encoded with; equal pieces are two tokens."""
    value = json.loads(tokenizer.to_str())
    first = tokenizer.get_vocab_size()
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for i, piece in enumerate(pieces):
        ((spelled, _),) = level.pre_tokenize_str(piece)
        value["model"]["vocab"][f"⟦{i}⟧{spelled}"] = first + i
    tokenizer = Tokenizer.from_str(json.dumps(value))
    tokenizer.decoder = decoders.Sequence([decoders.Replace(Regex(r"⟦\d+⟧"), ""), decoders.ByteLevel()])
    return tokenizer


def _weights(config: dict[str, object], follows: dict[int, int], ends: int) -> dict[str, mx.array]:
    """A layer that adds nothing to embeddings, of which each token that one follows has a dimension of its own, and a
    head that says what follows; after any other token, all in dimension 0, the answer ends."""
    model = make_model(read_config(config))
    weights = {name: mx.zeros_like(value) for name, value in tree_flatten(model.parameters())}
    weights |= {name: mx.ones_like(value) for name, value in weights.items() if "norm" in name}
    dimension = {token: i for i, token in enumerate(follows, 1)}
    embedding, head = "model.embed_tokens.weight", "lm_head.weight"
    tokens = range(len(weights[head]))
    weights[embedding] = mx.eye(len(follows) + 1)[mx.array([dimension.get(token, 0) for token in tokens])]
    said = mx.array([ends, *follows.values()])
    weights[head] = 30 * (mx.arange(len(tokens))[:, None] == said[None, :]).astype(mx.float32)
    return weights
