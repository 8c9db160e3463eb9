"""The configs of published models, for trying a shape with random weights before a download."""

import json
from pathlib import Path
from typing import Any

from ...errors import InputError

SHAPES = (
    "trinity-nano",
    "trinity-mini",
    "trinity-large",
    "trinity-large-thinking",
    "lfm2-8b-a1b",
    "lfm2-24b-a2b",
    "lfm2.5-8b-a1b",
)

# Those that have another one's.
SAME = {"trinity-large-thinking": "trinity-large"}


def shape(name: str, *, layers: int | None = None) -> dict[str, Any]:
    """The parsed `config.json` of a published model, of its first `layers` layers alone if that is given.

    Raises InputError for a name that is none of SHAPES, and for layers that the model does not have.
    """
    if name not in SHAPES:
        raise InputError(f"no shape called {name!r}: expected one of {', '.join(SHAPES)}")
    path = Path(__file__).parent / f"{SAME.get(name, name)}.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if layers is None:
        return config
    whole = config["num_hidden_layers"]
    if isinstance(layers, bool) or not isinstance(layers, int) or not 1 <= layers <= whole:
        raise InputError(f"layers is {layers!r}: expected 1 to {whole}, as many as {name} has")
    cut = {"num_hidden_layers": layers, "num_dense_layers": min(config["num_dense_layers"], layers)}
    return config | cut | {"layer_types": config["layer_types"][:layers]}
