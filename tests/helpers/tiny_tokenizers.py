"""Tokenizers of a few hundred tokens, made on the fly, and folders that hold them."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

SPECIAL_TOKENS = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]


def byte_level(
    lines: Iterable[str] = ("the world says hello, hello to the world",), *, vocab_size: int = 280
) -> Tokenizer:
    """Byte-level BPE made of lines: by default its few merges are ASCII, every other character is split into bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=SPECIAL_TOKENS,
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    return tokenizer


def byte_fallback() -> Tokenizer:
    """SentencePiece-like BPE, as Llama 2's: ▁ for a space, <0xNN> for the bytes of what it cannot spell."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", "▁b"]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    merges = [("▁", "a"), ("▁", "b")]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def metaspace() -> Tokenizer:
    """Unigram with Metaspace on both sides."""
    pieces = [("<unk>", 0.0), ("▁", -2.0), ("a", -2.0), ("b", -2.0), ("▁a", -1.0), ("é", -3.0), ("日", -3.0)]
    tokenizer = Tokenizer(models.Unigram(vocab=pieces, unk_id=0, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer


def save(folder: Path, tokenizer: Tokenizer | None = None, **files: dict[str, Any] | str) -> Path:
    """Writes tokenizer.json and more files: `config={...}` gives config.json, a string is written as it stands."""
    folder.mkdir(parents=True, exist_ok=True)
    (tokenizer or byte_level()).save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
    return folder


def rename_special(folder: Path, token: str, name: str) -> Path:
    """Gives a special token of a folder's byte-level tokenizer another text."""
    path = folder / "tokenizer.json"
    value = json.loads(path.read_text(encoding="utf-8"))
    (entry,) = (entry for entry in value["added_tokens"] if entry["content"] == token)
    entry["content"] = name
    value["model"]["vocab"][name] = value["model"]["vocab"].pop(token)
    path.write_text(json.dumps(value), encoding="utf-8")
    return folder
