"""`reasoning_effort`: what OpenAI's efforts of reasoning come to."""

from typing import Any

_LOWEST = ("none", "minimal")


def template_variables(effort: str | None) -> dict[str, Any]:
    """Of the chat template: the two lowest efforts switch reasoning off where it can be, all others on."""
    return {} if effort is None else {"reasoning_effort": effort, "enable_thinking": effort not in _LOWEST}


def reasoning_budget(effort: str | None) -> int | None:
    """For a model that would reason whatever its template is told."""
    return 0 if effort == "none" else None
