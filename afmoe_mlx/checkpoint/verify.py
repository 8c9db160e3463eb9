"""Checking from headers alone that a checkpoint has the tensors its config's model needs."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import mlx.core as mx

from ..errors import CheckpointError
from ..models import ModelConfig
from ..values import listed, shown
from .files import StoredTensor
from .layouts import Piece, shape_of

Groups = Mapping[str, list[Piece]]
Headers = Mapping[str, StoredTensor]

# Called before weights are fetched or read; raises to refuse a model.
Check = Callable[[ModelConfig, Headers], None]

# What each parameter may be stored as; floating ones are cast to the dtype that is computed in.
FLOATS = ("BF16", "F16", "F32")
STORED_AS = {mx.uint32: ("U32",), mx.uint8: ("U8",)}


def check_layers(folder: Path, config: ModelConfig, tensors: int) -> None:
    """CheckpointError if the config has far more layers than there are tensors: no such model is made."""
    layers = config.num_hidden_layers
    if layers > tensors + 100:
        found = f"the files hold {tensors} tensors"
        raise CheckpointError(f"{folder}: {found}: expected num_hidden_layers {layers} of config.json to fit them")


def check_tensors(folder: Path, expected: Mapping[str, mx.array], groups: Groups, headers: Headers) -> None:
    """CheckpointError naming tensors that are missing, unexpected, misshapen or of the wrong kind."""
    if missing := expected.keys() - groups.keys():
        raise CheckpointError(f"{folder}: missing {listed(missing)}: the download may be incomplete")
    if extra := {piece.stored for name in groups.keys() - expected.keys() for piece in groups[name]}:
        raise CheckpointError(f"{folder}: unexpected {listed(extra)}: not parameters of this config's model")
    for name, array in expected.items():
        _check_pieces(folder, name, groups[name], headers, array.shape)
        _check_shape(name, groups[name], headers, array.shape)
        _check_dtypes(groups[name], headers, array.dtype)


def _check_pieces(folder: Path, name: str, pieces: Sequence[Piece], headers: Headers, shape: tuple[int, ...]) -> None:
    """Each parameter comes whole from one tensor, or from exactly one for each expert, alike in shape."""
    indices = [piece.expert for piece in pieces]
    if indices == [None]:
        return
    experts = shape[0]
    held = {i for i in indices if i is not None}
    if None not in indices and len(shape) > 1 and len(held) < experts:
        absent = next(i for i in range(experts) if i not in held)
        raise CheckpointError(f"{folder}: {name}: expert {absent} is missing: expected {experts} experts")
    if indices != list(range(experts)):
        expected = f"one tensor, or one for each of {experts} experts" if len(shape) == 3 else "one tensor"
        raise CheckpointError(f"{folder}: {name} has {listed(p.stored for p in pieces)}: expected {expected}")
    first = headers[pieces[0].stored].shape
    for piece in pieces:
        if (found := headers[piece.stored]).shape != first:
            raise CheckpointError(f"{found.file}: {piece.stored} has shape {found.shape}: expected {first}, as others")


def _check_shape(name: str, pieces: list[Piece], headers: Headers, want: tuple[int, ...]) -> None:
    stored = pieces[0].stored
    found = shape_of(pieces, {stored: headers[stored].shape})
    transposed = (found[0], found[2], found[1]) if name.endswith("conv.conv.weight") and len(found) == 3 else found
    if want not in (found, transposed):
        whose = stored if stored == name else f"{stored}, for {name},"
        raise CheckpointError(f"{headers[stored].file}: {whose} has shape {found}: expected {want} by the config")


def _check_dtypes(pieces: Sequence[Piece], headers: Headers, dtype: mx.Dtype) -> None:
    accepted = STORED_AS.get(dtype, FLOATS)
    for piece in pieces:
        if (found := headers[piece.stored]).dtype not in accepted:
            expected = f"{' or '.join(accepted)} by the config"
            raise CheckpointError(f"{found.file}: {piece.stored} is {shown(found.dtype)}: expected {expected}")
