"""Makes the goldens of gradients: `cd tests && python -m helpers.make_gradient_goldens` (needs the extra `reference`).

Transformers' own modules compute the loss of each configuration of grid.py from the weights of its golden, and torch
differentiates it: by every weight, and with an adapter at every linear map by the adapters' factors.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils import parametrize

from afmoe_mlx.checkpoint.layouts import pieces_of
from helpers.checkpoints import write_golden
from helpers.gradients import FILE, NAMES, SCALE, adapter, batches, sketch
from helpers.grid import GRID, TRACED
from helpers.make_goldens import CLASSES


class Adapted(torch.nn.Module):
    """A weight as PEFT changes it: W + scale · (a b)ᵀ; by DoRA with the lengths of its rows made those of m.

    Of what is packed each part has factors of its own.
    """

    def __init__(self, parts: list[dict[str, torch.Tensor]]) -> None:
        super().__init__()
        self.parts = parts

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        changed = weight + SCALE * torch.cat([(part["lora_a"] @ part["lora_b"]).mT for part in self.parts], dim=-2)
        if "m" in self.parts[0]:
            lengths = changed.norm(dim=1).detach()  # as in the paper, section 4.3, and in PEFT
            changed = (self.parts[0]["m"] / lengths)[:, None] * changed
        return changed


def main() -> None:
    arrays = {}
    for name in GRID:
        for kind, gradients in gradients_of(name).items():
            arrays[f"{name}/{kind}"] = np.stack([sketch(gradients[key]) for key in sorted(gradients)])
            arrays[f"{name}/{kind}{NAMES}"] = np.array(sorted(gradients))
        print(name)
    np.savez_compressed(FILE, **arrays)
    print(f"{FILE.name}: {FILE.stat().st_size} bytes")


def gradients_of(name: str) -> dict[str, dict[str, np.ndarray]]:
    """Gradients by our parameters' names: of the weights for each batch, and of adapters."""
    model, made = load(name), {}
    for kind, batch in batches(name).items():
        model.zero_grad()
        loss(model, *batch).backward()
        found = {tensor: full.grad for tensor, full in model.named_parameters() if full.grad is not None}
        made[kind] = {ours: part for tensor, grad in found.items() for ours, part in parts_of(name, tensor, grad)}
    for kind in ("adapters", "dora") if name in TRACED else ("adapters",):
        model = load(name)
        factors = adapt(model, name, dora=kind == "dora")
        loss(model, *batches(name)["padded"]).backward()
        made[kind] = {key: factor.grad.numpy() for key, factor in factors.items()}
    return made


def load(name: str) -> torch.nn.Module:
    eager = {"attn_implementation": "eager", "experts_implementation": "eager"}
    with tempfile.TemporaryDirectory() as folder:
        write_golden(Path(folder), name)
        model, report = CLASSES[name.split("-")[0]][1].from_pretrained(folder, output_loading_info=True, **eager)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    model.config.use_cache = False
    return model.eval()


def loss(model: torch.nn.Module, ids: np.ndarray, mask: np.ndarray, labels: np.ndarray) -> torch.Tensor:
    """The mean cross-entropy of the next labels but for those of -100."""
    logits = model(torch.tensor(ids), attention_mask=torch.tensor(mask)).logits
    return cross_entropy(logits[:, :-1].flatten(0, 1), torch.tensor(labels)[:, 1:].flatten())


def parts_of(name: str, tensor: str, full: torch.Tensor) -> Iterator[tuple[str, np.ndarray]]:
    """Our parameters that a tensor is, with their values: gate and up of experts are packed in one."""
    pieces = pieces_of(tensor, name.split("-")[0])
    for (ours, _), part in zip(pieces, full.chunk(len(pieces), dim=-2 if full.ndim > 1 else 0), strict=True):
        if part.numel():
            yield ours, part.numpy()


def adapt(model: torch.nn.Module, name: str, *, dora: bool) -> dict[str, torch.Tensor]:
    """Give every linear map an adapter, and the other parameters no gradient; the factors by our names."""
    model.requires_grad_(requires_grad=False)
    factors: dict[str, torch.Tensor] = {}
    for tensor, weight in list(model.named_parameters()):
        parent, _, key = tensor.rpartition(".")
        if weight.ndim < 2 or "embed_tokens" in tensor or "conv.conv" in tensor:
            continue
        parts = []
        for ours, part in parts_of(name, tensor, weight):
            path = ours.removesuffix(".weight")
            made = {key: torch.tensor(a, requires_grad=True) for key, a in adapter(path, part.shape, dora=dora).items()}
            factors |= made
            parts.append({key.removeprefix(f"{path}."): a for key, a in made.items()})
        if parts:
            parametrize.register_parametrization(model.get_submodule(parent), key, Adapted(parts))
    return factors


if __name__ == "__main__":
    main()
