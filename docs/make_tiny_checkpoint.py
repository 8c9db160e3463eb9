"""Trains a tiny AFMoE on Python's own documentation, with Transformers, and saves it as a Hub checkpoint would be.

    pip install -e ".[reference]"
    python docs/make_tiny_checkpoint.py tiny-afmoe --steps 300

The text is `pydoc_data.topics`, which comes with Python. Nothing is downloaded. docs/quickstart.md goes on from here.
"""

import argparse
import time
from pathlib import Path
from pydoc_data.topics import topics

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AfmoeConfig, AfmoeForCausalLM, PreTrainedTokenizerFast

BATCH, LENGTH = 16, 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=300)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    text = "\n\n".join(topics.values())
    tokenizer = make_tokenizer(text)
    model = make_model(len(tokenizer))
    train(model, torch.tensor(tokenizer(text)["input_ids"]), arguments.steps)
    model.to(torch.bfloat16).save_pretrained(arguments.folder)
    tokenizer.save_pretrained(arguments.folder)


def make_tokenizer(text: str) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=4096, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"])
    tokenizer.train_from_iterator([text], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>")


def make_model(vocab_size: int) -> AfmoeForCausalLM:
    """About five million parameters: one dense layer, then experts; a small window, so that it matters."""
    config = AfmoeConfig(
        vocab_size=vocab_size,
        hidden_size=128,
        intermediate_size=384,
        moe_intermediate_size=128,
        num_hidden_layers=8,
        num_dense_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        num_experts=8,
        num_experts_per_tok=2,
        num_shared_experts=1,
        route_scale=1.0,
        sliding_window=64,
        max_position_embeddings=2048,
        mup_enabled=True,
    )
    model = AfmoeForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith("router.gate.weight"):  # Transformers starts it at zero, where all experts are alike
            torch.nn.init.normal_(parameter, std=0.02)
    model.set_experts_implementation("grouped_mm")
    return model


def train(model: AfmoeForCausalLM, tokens: torch.Tensor, steps: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    began = time.perf_counter()
    for step in range(1, steps + 1):
        starts = torch.randint(len(tokens) - LENGTH, (BATCH,))
        ids = torch.stack([tokens[start : start + LENGTH] for start in starts])
        loss = model(ids, labels=ids, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps:
            print(f"step {step}: loss {loss.item():.2f}, {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
