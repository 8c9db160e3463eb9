"""The demo's tokenizer: byte-level BPE trained on its own text, and a ChatML template."""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from .corpus import Message, texts

END_OF_TEXT, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content | trim }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def train_tokenizer(vocab_size: int, seed: int = 0, dialogues: int = 40_000) -> Tokenizer:
    """Digits stay single, so that sums can be learned; typographic quotes become plain ones."""
    tokenizer = Tokenizer(models.BPE())
    quotes = [normalizers.Replace("’", "'"), normalizers.Replace(Regex("[“”]"), '"')]
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), *quotes])
    split = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts(seed, dialogues), *["system", "user", "assistant"] * 1000], trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, context: int) -> None:
    """The files beside a checkpoint's weights."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "add_bos_token": False,
        "eos_token": END,
        "pad_token": END_OF_TEXT,
        "model_max_length": context,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def encode(tokenizer: Tokenizer, messages: Iterable[Message]) -> tuple[list[int], list[bool]]:
    """A conversation's ids as the template gives them, and which of them are an answer's (its end included)."""
    ids: list[int] = []
    is_answer: list[bool] = []
    for message in messages:
        head = tokenizer.encode(f"{START}{message['role']}\n").ids
        body = tokenizer.encode(f"{message['content'].strip()}{END}").ids
        ids += head + body + tokenizer.encode("\n").ids
        is_answer += [False] * len(head) + [message["role"] == "assistant"] * len(body) + [False]
    return ids, is_answer
