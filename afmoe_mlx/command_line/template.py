"""`--chat-template` and `--chat-template-config`: a chat template from a file, and variables for it."""

import json
from typing import Any

from ..errors import InputError
from .text_files import read_text

# What a command itself hands to the template.
RESERVED = {"messages", "tools", "add_generation_prompt", "continue_final_message", "tokenize"}


def read_template(path: str | None) -> str | None:
    """The Jinja source in a file, None for no path; InputError if it cannot be read."""
    if path is None:
        return None
    return read_text(path, "--chat-template")


def template_variables(text: str | None) -> dict[str, Any]:
    """The variables in a JSON object, none for no text; InputError for anything else."""
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"--chat-template-config is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise InputError("--chat-template-config: expected a JSON object, such as '{\"enable_thinking\": false}'")
    if clash := value.keys() & RESERVED:
        raise InputError(f"--chat-template-config sets {sorted(clash)[0]}: that is not the template's to choose")
    return value
