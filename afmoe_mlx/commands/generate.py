"""`afmoe-mlx generate`: one answer on stdout, statistics on stderr."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..api import load
from ..errors import InputError
from ..generation import GenerationChunk, check_options, stream_generate
from ..terminal import note, read_stdin, write
from ..tokenizer import Tokenizer
from .progress import progress_bar

# Shorter prompts are read before a progress bar would be worth drawing.
LONG_PROMPT = 2048

# What the command itself hands to the template.
RESERVED = {"messages", "tools", "add_generation_prompt", "continue_final_message", "tokenize"}


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to answer, and how the prompt is made of it."""

    model: str
    revision: str | None
    prompt: str
    """"-" reads stdin."""
    system_prompt: str | None
    prefill_response: str | None
    ignore_chat_template: bool
    chat_template_config: str | None
    """A JSON object of template variables."""
    extra_eos_tokens: Sequence[str]
    context: int | None
    """Tokens that memory must have room for."""
    force: bool
    """Load what does not fit as well."""


def run(request: Request, options: Mapping[str, Any], *, verbose: bool, as_json: bool) -> int:
    """Answer and print; the exit status, 130 if the answer was interrupted."""
    template_variables = _template_variables(request.chat_template_config)
    check_options(**options)
    text = read_stdin() if request.prompt == "-" else request.prompt
    model, tokenizer = load(request.model, revision=request.revision, context=request.context, force=request.force)
    tokenizer = tokenizer.with_extra_eos(request.extra_eos_tokens)
    prompt = render_prompt(tokenizer, text, request, template_variables)
    parts: list[str] = []
    last: GenerationChunk | None = None
    interrupted = False
    try:
        with progress_bar("reading the prompt", at_least=LONG_PROMPT) as show:
            for last in stream_generate(model, tokenizer, prompt, on_progress=show, **options):
                parts.append(last.text)
                if not as_json:
                    write(last.text)
    except KeyboardInterrupt:
        interrupted = True
    reason = "interrupted" if interrupted else last.finish_reason if last else None
    if as_json:
        write(json.dumps(_summary("".join(parts), last, reason), ensure_ascii=False) + "\n")
    else:
        write("\n")
        if verbose and last:
            _statistics(last)
    return 130 if interrupted else 0


def render_prompt(
    tokenizer: Tokenizer, text: str, request: Request, template_variables: Mapping[str, Any]
) -> str | list[int]:
    """The prompt as the model expects it: through the chat template, if there is one and it is wanted."""
    if request.ignore_chat_template or tokenizer.chat_template is None:
        for name in ("system_prompt", "prefill_response"):
            if getattr(request, name) is not None:
                raise InputError(f"--{name.replace('_', '-')} needs a chat template: this model has none in use")
        return text
    messages = [{"role": "user", "content": text}]
    if request.system_prompt is not None:
        messages.insert(0, {"role": "system", "content": request.system_prompt})
    if request.prefill_response is not None:
        messages.append({"role": "assistant", "content": request.prefill_response})
    continued = request.prefill_response is not None
    return tokenizer.apply_chat_template(
        messages, add_generation_prompt=not continued, continue_final_message=continued, **template_variables
    )


def _template_variables(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InputError(f"--chat-template-config is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise InputError("--chat-template-config: expected a JSON object, such as '{\"enable_thinking\": false}'")
    if clash := value.keys() & RESERVED:
        raise InputError(f"--chat-template-config sets {sorted(clash)[0]}: that is not the template's to choose")
    return value


def _summary(text: str, last: GenerationChunk | None, reason: str | None) -> dict[str, Any]:
    return {
        "text": text,
        "finish_reason": reason,
        "prompt_tokens": last.prompt_tokens if last else 0,
        "generation_tokens": last.generation_tokens if last else 0,
        "prompt_tps": last.prompt_tps if last else 0.0,
        "generation_tps": last.generation_tps if last else 0.0,
        "peak_memory_gb": last.peak_memory_gb if last else 0.0,
    }


def _statistics(last: GenerationChunk) -> None:
    note(f"Prompt: {last.prompt_tokens} tokens, {last.prompt_tps:.1f} tokens/s")
    note(f"Answer: {last.generation_tokens} tokens, {last.generation_tps:.1f} tokens/s ({last.finish_reason})")
    note(f"Peak memory: {last.peak_memory_gb:.2f} GB")
