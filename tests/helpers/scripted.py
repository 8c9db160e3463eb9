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
# What a prompt ends with: how many answers the conversation has.
TURN = (
    "{%- if add_generation_prompt %}"
    "{{- '<|turn_' ~ [messages | selectattr('role', 'equalto', 'assistant') | list | length, LAST] | min ~ '|>' }}"
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
    "max_position_embeddings": 16384,
}


def scripted_folder(folder: Path, answers: Sequence[str], *, template: str = CHATML, endless: bool = False) -> Path:
    """A whole model folder whose answers are these: the first to a conversation that has none yet, and so on; the last
    to all that are longer.

    They come in tokens of four characters, each the only one that may follow the one before it. template: the chat
    template, which ends with the generation prompt. endless: an answer begins again when it has been said.
    """
    pieces = [[answer[i : i + 4] for i in range(0, len(answer), 4)] for answer in answers]
    tokenizer = _with_pieces(byte_level(), [piece for answer in pieces for piece in answer])
    turns = [f"<|turn_{i}|>" for i in range(len(answers))]
    first = tokenizer.get_vocab_size() - sum(map(len, pieces))
    tokenizer.add_special_tokens(turns)
    ends, size = tokenizer.token_to_id(END), tokenizer.get_vocab_size()
    follows: dict[int, int] = {}
    for turn, answer in zip(turns, pieces, strict=True):
        ids = [*range(first, first := first + len(answer))]
        after = [ids[0]] if endless else [ends]
        follows |= dict(zip([tokenizer.token_to_id(turn), *ids], [*ids, *after], strict=True))
    source = template + TURN.replace("LAST", str(len(answers) - 1))
    config = {"model_type": "afmoe", "vocab_size": size, "hidden_size": size} | SMALL
    files = {"chat_template": source, "eos_token": END, "bos_token": "<s>"}
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
    """A layer that adds nothing to embeddings of which each is a dimension of its own, and a head that says what
    follows; after any other token the answer ends."""
    model = make_model(read_config(config))
    weights = {name: mx.zeros_like(value) for name, value in tree_flatten(model.parameters())}
    weights |= {name: mx.ones_like(value) for name, value in weights.items() if "norm" in name}
    size = int(str(config["vocab_size"]))
    chosen = mx.array([follows.get(token, ends) for token in range(size)])
    weights["model.embed_tokens.weight"] = mx.eye(size)
    weights["lm_head.weight"] = 30 * (mx.arange(size)[:, None] == chosen[None, :]).astype(mx.float32)
    return weights
