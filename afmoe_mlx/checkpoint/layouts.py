"""The tensor layouts of AFMoE and LFM2-MoE checkpoints, and how each becomes ours, which is mlx-lm's.

Read are one tensor an expert (the Hub's files), gate and up of all experts packed in one (Transformers in memory), and
experts stacked, one tensor a projection (mlx-lm). A stored tensor is a piece of one or two of our parameters.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

EXPERT = re.compile(r"(?P<path>.*\.experts)\.(?P<expert>[0-9]{1,6})\.(?P<projection>\w+)\.(?P<kind>\w+)")
PACKED = re.compile(r"(?P<path>.*\.experts)\.(?P<projection>gate_up_proj|down_proj)")

LAYER = re.compile(r"(.*\.)?layers\.(?P<layer>[0-9]{1,6})\..*")

# Liquid's letters for the parts of a gated MLP
PROJECTIONS = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}

# Stored by some, computed here
EXTRAS = re.compile(r".*(rotary_emb|pos_emb)\.(original_)?inv_freq")


@dataclass(frozen=True, slots=True)
class Piece:
    """A stored tensor as a part of one of our parameters."""

    stored: str
    expert: int | None = None
    """Which expert's it is, where each has its own tensor."""
    half: int | None = None
    """0 or 1: the first or second half of its rows, where gate and up are packed."""


def is_in_part(name: str, part: range) -> bool:
    """Whether a tensor, stored or ours, is of one of these layers; what stands around all goes with the first."""
    layer = layer_of(name)
    return part.start == 0 if layer is None else layer in part


def layer_of(name: str) -> int | None:
    """The number of the layer that a tensor, stored or ours, is of; None for what stands around all."""
    match = LAYER.fullmatch(name)
    return None if match is None else int(match["layer"])


def pieces_of(stored: str, model_type: str) -> list[tuple[str, Piece]]:
    """Our parameter names that the tensor `stored` is part of, with what it is to each."""
    if match := EXPERT.fullmatch(stored):
        name = f"{_experts(match['path'], model_type)}.{_projection(match['projection'])}.{match['kind']}"
        return [(name, Piece(stored, expert=int(match["expert"])))]
    if match := PACKED.fullmatch(stored):
        path = _experts(match["path"], model_type)
        if match["projection"] == "down_proj":
            return [(f"{path}.down_proj.weight", Piece(stored))]
        return [(f"{path}.{name}.weight", Piece(stored, half=i)) for i, name in enumerate(("gate_proj", "up_proj"))]
    parts = stored.split(".")
    if model_type == "lfm2_moe" and len(parts) > 1:
        parts[-2] = _projection(parts[-2])
    return [(".".join(parts), Piece(stored))]


def _experts(path: str, model_type: str) -> str:
    return path.removesuffix("experts") + "switch_mlp" if model_type == "lfm2_moe" else path


def _projection(name: str) -> str:
    return PROJECTIONS.get(name, name)


def is_extra(stored: str, shape: tuple[int, ...], *, tied: bool) -> bool:
    """Whether a tensor may be there without being a parameter: frequencies, a tied head, an empty shared expert."""
    return bool(EXTRAS.fullmatch(stored)) or (tied and stored == "lm_head.weight") or 0 in shape


def group(stored: Mapping[str, tuple[int, ...]], model_type: str, *, tied: bool) -> dict[str, list[Piece]]:
    """Our parameter names with the stored tensors each is made of, experts in order."""
    groups: dict[str, list[Piece]] = {}
    for name, shape in stored.items():
        if not is_extra(name, shape, tied=tied):
            for ours, piece in pieces_of(name, model_type):
                groups.setdefault(ours, []).append(piece)
    for pieces in groups.values():
        pieces.sort(key=lambda piece: piece.expert or 0)
    return groups


def shape_of(pieces: list[Piece], stored: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """The shape of the parameter that `pieces` make, before any transposition."""
    shape = stored[pieces[0].stored]
    if pieces[0].half is not None and len(shape) == 3 and shape[1] % 2 == 0:
        return (shape[0], shape[1] // 2, shape[2])
    return shape if pieces[0].expert is None else (len(pieces), *shape)
