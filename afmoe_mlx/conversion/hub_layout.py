"""The tensor layout of the Hub's checkpoints, which Transformers loads: the inverse of `checkpoint.layouts`.

There an expert has tensors of its own, Liquid's parts of an MLP are letters, and a convolution's weight is (D, 1, K)
where ours is (D, K, 1). So each of our plain tensors is, byte for byte, some of the Hub's, one after the other.
"""

import re

from ..checkpoint.layouts import PROJECTIONS

EXPERTS = re.compile(r"(?P<path>.*)\.(?:experts|switch_mlp)\.(?P<projection>\w+)\.(?P<kind>\w+)")
LETTERS = {projection: letter for letter, projection in PROJECTIONS.items()}
CONVOLUTION = "conv.conv.weight"


def hub_tensors(name: str, shape: tuple[int, ...], model_type: str) -> list[tuple[str, tuple[int, ...]]]:
    """The names and shapes, in order, of the Hub's tensors whose bytes make up one of ours.

    name, shape: of one of our plain parameters, unfused, as in "model.layers.3.mlp.experts.up_proj.weight", (E, m, D).
    """
    if len(shape) == 3 and (match := EXPERTS.fullmatch(name)):
        projection = _letter(match["projection"], model_type)
        stored = f"{match['path']}.experts.{{}}.{projection}.{match['kind']}"
        return [(stored.format(expert), shape[1:]) for expert in range(shape[0])]
    if name.endswith(CONVOLUTION):
        return [(name, (shape[0], shape[2], shape[1]))]
    parts = name.split(".")
    if "feed_forward" in parts:
        parts[-2] = _letter(parts[-2], model_type)
    return [(".".join(parts), shape)]


def _letter(projection: str, model_type: str) -> str:
    return LETTERS.get(projection, projection) if model_type == "lfm2_moe" else projection
