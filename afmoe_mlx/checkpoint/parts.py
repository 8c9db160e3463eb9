"""A part of a model as a model of its own, for what reckons with configs and headers."""

from collections import defaultdict
from dataclasses import replace
from typing import TypeVar

from ..models import ModelConfig
from .files import StoredTensor
from .layouts import is_in_part, layer_of
from .verify import Headers

Config = TypeVar("Config", bound=ModelConfig)


def restricted(config: Config, headers: Headers, part: range) -> tuple[Config, dict[str, StoredTensor]]:
    """The config of some layers of a model, and the headers of their tensors, by the names they have in the whole.

    What stands around the layers is there if `part` has the first.
    """
    dense = min(max(config.num_dense_layers - part.start, 0), len(part))
    kinds = config.layer_types[part.start : part.stop]
    own = replace(config, num_hidden_layers=len(part), layer_types=kinds, num_dense_layers=dense)
    return own, {name: stored for name, stored in headers.items() if is_in_part(name, part)}


def by_layer(headers: Headers) -> dict[int, dict[str, StoredTensor]]:
    """The headers of each layer's tensors, with the first those of what stands around the layers."""
    found: dict[int, dict[str, StoredTensor]] = defaultdict(dict)
    for name, stored in headers.items():
        found[layer_of(name) or 0][name] = stored
    return found
