"""Refusing a prompt that no context has room for, before the model is loaded."""

import warnings

from ..api import DEMO
from ..checkpoint import resolve
from ..checkpoint.files import read_config_json
from ..models import read_config
from ..tokenizer import Tokenizer
from ..tokenizer.encoding import LONG


def check_length(text: str, model: str, *, revision: str | None) -> None:
    """ContextFullError for a prompt that certainly has more tokens than a model's context, whose weights stay unread.

    model: a folder, a short name, a Hub id or "demo". Raises also the errors of finding it.
    """
    if len(text) <= LONG:  # what encodes it says as quickly that it is too long
        return
    folder = DEMO if model == "demo" else resolve(model, revision=revision, weights=False)
    with warnings.catch_warnings(action="ignore"):  # loading warns of the same
        context = read_config(read_config_json(folder)).max_position_embeddings
    Tokenizer.from_folder(folder).check_length(text, context)
