"""Train the demo model with Transformers' AfmoeForCausalLM, on the CPU: `python -m afmoe_mlx.demo.train FOLDER`.

Writes a bf16 checkpoint that `afmoe-mlx convert` reads. Needs the packages of the extra `reference`.
"""

import argparse
import json
import os
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tokenizers import Tokenizer
from torch import nn
from transformers import AfmoeConfig, AfmoeForCausalLM

from .corpus import Writer
from .quantize import quantizable, rounded
from .tokens import encode, save_tokenizer, train_tokenizer

SHAPE: dict[str, Any] = {
    "vocab_size": 2048,
    "hidden_size": 192,
    "intermediate_size": 512,
    "moe_intermediate_size": 64,
    "num_hidden_layers": 8,
    "num_dense_layers": 1,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_experts": 16,
    "num_experts_per_tok": 2,
    "num_shared_experts": 1,
    "sliding_window": 64,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
    "mup_enabled": True,
    "route_scale": 1.0,
    "bos_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 2,
}
QUESTION_WEIGHT = 0.1  # of the loss on a token that is no answer's
BIAS_RATE = 1e-2  # falls with the learning rate
QUANTIZED_FROM = 0.7  # the share of the training after which the forward pass sees 4-bit weights
MAX_LENGTH = 640
# An answer is decided by its first tokens: most single questions are cut after these, so that more are seen a second.
CLIPPED, CLIP = 0.4, 16


def make_model(seed: int) -> Any:
    """A new model, its routers started with small random values instead of zeros."""
    torch.manual_seed(seed)
    model = AfmoeForCausalLM(AfmoeConfig(**SHAPE))
    for name, parameter in model.named_parameters():
        if name.endswith("router.gate.weight"):
            nn.init.normal_(parameter, std=0.02)
    return model


class LoadBalance:
    """Loss-free balancing: an expert with less than its share of the tokens gets a higher bias, by a fixed step."""

    def __init__(self, model: Any) -> None:
        self.blocks = [layer.mlp for layer in model.model.layers if layer.moe_enabled]
        self.counts = [torch.zeros(block.experts.num_experts) for block in self.blocks]
        self.real: torch.Tensor | None = None
        for i, block in enumerate(self.blocks):
            block.router.register_forward_hook(lambda _module, _args, output, i=i: self.count(i, output[2]))

    def count(self, i: int, selected: torch.Tensor) -> None:
        chosen = selected if self.real is None else selected[self.real]
        self.counts[i] = torch.bincount(chosen.flatten(), minlength=len(self.counts[i])).float()

    @torch.no_grad()
    def step(self, rate: float) -> None:
        dist.all_reduce(joined := torch.stack(self.counts))
        self.counts = list(joined)
        for block, counts in zip(self.blocks, self.counts, strict=True):
            block.expert_bias += rate * torch.sign(counts.mean() - counts)

    def worst(self) -> float:
        """The largest load of an expert, as a multiple of the mean."""
        return max(float(counts.max() / counts.mean()) for counts in self.counts)


Encoded = tuple[list[int], list[bool]]


def clipped(pair: Encoded, rng: random.Random) -> Encoded:
    """A conversation, or, if it is a single question, often only the beginning of its answer."""
    ids, is_answer = pair
    first = is_answer.index(True)
    is_single = all(is_answer[first:-1])
    end = first + CLIP if is_single and rng.random() < CLIPPED else None
    return ids[:end], is_answer[:end]


def batches(tokenizer: Tokenizer, seed: int, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Ids, answer marks and real-token marks (B, L), of about `size` tokens and conversations of like length."""
    writer = Writer(seed)
    dialogues = writer.dialogues()
    while True:
        encoded = (encode(tokenizer, next(dialogues)) for _ in range(1500))
        pool = sorted((clipped(pair, writer.random) for pair in encoded), key=lambda pair: len(pair[0]))
        groups: list[list[Encoded]] = [[]]
        for pair in pool:
            if groups[-1] and (len(groups[-1]) + 1) * min(len(pair[0]), MAX_LENGTH) > size:
                groups.append([])
            groups[-1].append(pair)
        writer.random.shuffle(groups)
        for group in groups:
            yield padded(group)


def padded(group: list[Encoded]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Conversations as one batch, padded on the right."""
    width = min(max(len(ids) for ids, _ in group), MAX_LENGTH)
    ids = torch.zeros(len(group), width, dtype=torch.long)
    is_answer, real = torch.zeros(ids.shape, dtype=torch.bool), torch.zeros(ids.shape, dtype=torch.bool)
    for row, (tokens, marks) in enumerate(group):
        length = min(len(tokens), width)
        ids[row, :length] = torch.tensor(tokens[:length])
        is_answer[row, :length] = torch.tensor(marks[:length])
        real[row, :length] = True
    return ids, is_answer, real


def loss_of(model: Any, ids: torch.Tensor, is_answer: torch.Tensor, real: torch.Tensor) -> tuple[Any, float]:
    """The weighted loss to minimise, and the mean loss of answer tokens."""
    logits = model(ids, use_cache=False).logits[:, :-1].float()
    losses = nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    answer, kept = is_answer[:, 1:].flatten().float(), real[:, 1:].flatten().float()
    weight = answer + QUESTION_WEIGHT * (kept - answer)
    return (losses * weight).sum() / weight.sum(), float((losses * answer).sum().detach() / answer.sum())


def save(model: Any, tokenizer: Tokenizer, folder: Path, report: dict[str, Any]) -> None:
    """The checkpoint in bf16, its expert bias in float32, put in place whole."""
    beside = folder.with_name(folder.name + ".new")
    shutil.rmtree(beside, ignore_errors=True)
    copy = AfmoeForCausalLM(model.config)
    copy.load_state_dict(model.state_dict())
    biases = {n: p.detach().clone() for n, p in copy.named_parameters() if n.endswith("expert_bias")}
    copy.bfloat16()
    for name, bias in biases.items():
        copy.get_parameter(name).data = bias
    copy.generation_config.update(do_sample=False, max_length=None)
    copy.save_pretrained(beside)
    save_tokenizer(tokenizer, beside, SHAPE["max_position_embeddings"])
    (beside / "training.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(beside, folder)


def share_gradients(parameters: list[torch.Tensor]) -> None:
    """Replace every gradient by its mean over the workers."""
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    dist.all_reduce(joined := torch.cat([gradient.flatten() for gradient in gradients]))
    parts = (joined / dist.get_world_size()).split([p.numel() for p in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part.view_as(parameter)


def train(rank: int, options: argparse.Namespace) -> None:
    """One worker of the training: it sees its own dialogues, and all workers take the same steps.

    The learning rate falls linearly with the time that has passed; worker 0 saves every three minutes.
    """
    join_workers(rank, options)
    model, tokenizer = start(options)
    balance, weights = LoadBalance(model), quantizable(model)
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=0.0, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
    began = saved = time.time()
    tokens, mean, clock = 0, 0.0, torch.zeros(1)
    for step, (ids, is_answer, real) in enumerate(
        batches(tokenizer, options.seed * 100 + rank + 1, options.batch_tokens)
    ):
        clock[0] = time.time() - began
        dist.broadcast(clock, 0)
        done = float(clock) / (60 * options.minutes)
        if done >= 1:
            break
        falling = min(1.0, 1.25 * (1 - done) + 0.01)
        optimizer.param_groups[0]["lr"] = options.learning_rate * min(falling, (step + 1) / 100)
        balance.real = real.flatten()
        with rounded(weights, on=done >= QUANTIZED_FROM):
            loss, answer_loss = loss_of(model, ids, is_answer, real)
            loss.backward()
        share_gradients(learned)
        nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        balance.step(BIAS_RATE * falling)
        tokens += int(real.sum()) * options.workers
        mean = answer_loss if step == 0 else 0.98 * mean + 0.02 * answer_loss
        report = {"steps": step + 1, "tokens": tokens, "seconds": round(float(clock)), "loss": round(mean, 4)}
        if rank == 0 and step % 20 == 0:
            print(json.dumps(report | {"load": round(balance.worst(), 2)}), flush=True)
        if rank == 0 and time.time() - saved > 180:
            save(model, tokenizer, options.folder, report)
            saved = time.time()
    if rank == 0:
        save(model, tokenizer, options.folder, report)


def join_workers(rank: int, options: argparse.Namespace) -> None:
    """One thread for this worker, and a way to the others."""
    torch.set_num_threads(1)
    address = f"file://{options.folder.resolve()}.rendezvous"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=options.workers)


def start(options: argparse.Namespace) -> tuple[Any, Tokenizer]:
    """A new model and tokenizer, or those of a checkpoint to go on from."""
    source = options.continue_from
    if source is None:
        model, tokenizer = make_model(options.seed), train_tokenizer(SHAPE["vocab_size"])
    else:
        model = AfmoeForCausalLM.from_pretrained(source, dtype=torch.float32)
        tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    model.set_experts_implementation("grouped_mm")
    return model, tokenizer


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the checkpoint is written")
    parser.add_argument("--minutes", type=float, default=75)
    parser.add_argument("--learning-rate", type=float, default=2.5e-3)
    parser.add_argument("--batch-tokens", type=int, default=768, help="of each worker")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--continue-from", type=Path, help="a checkpoint made by this script")
    options = parser.parse_args()
    options.folder.parent.mkdir(parents=True, exist_ok=True)
    Path(f"{options.folder.resolve()}.rendezvous").unlink(missing_ok=True)
    torch.multiprocessing.spawn(train, (options,), nprocs=options.workers)


if __name__ == "__main__":
    main()
