"""`afmoe-mlx generate`: one answer on stdout, statistics on stderr."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..api import load
from ..cache import PrefixStore
from ..command_line.answer import Answer, summary
from ..command_line.draft import with_draft_model
from ..command_line.kv_bits import tell_kv_bits
from ..command_line.progress import progress_bar
from ..command_line.prompt_cache import PromptFile, disk_directory
from ..command_line.requests.answering import GenerateRequest, or_demo
from ..command_line.self_test import suggest_self_test
from ..errors import InputError
from ..generation import GenerationChunk, check_options, encode_prompt, stream_generate
from ..terminal import note, read_stdin, write
from ..tokenizer import Tokenizer

# Shorter prompts are read before a progress bar would be worth drawing.
LONG_PROMPT = 2048

# What the command itself hands to the template.
RESERVED = {"messages", "tools", "add_generation_prompt", "continue_final_message", "tokenize"}


def run(request: GenerateRequest) -> int:
    """Answer and print; the exit status, 130 if the answer was interrupted."""
    name = or_demo(request.model)
    template_variables = _template_variables(request.chat_template_config)
    options: dict[str, Any] = {**request.stream_options, "stop": request.stop or ()}
    check_options(**options)
    text = read_stdin() if request.prompt == "-" else request.prompt
    model, tokenizer = load(
        name,
        revision=request.revision,
        context=request.context,
        kv_quantization=request.kv.quantization,
        force=request.force,
    )
    tell_kv_bits(model)
    suggest_self_test(name)
    options = with_draft_model(options, request.draft_model, tokenizer, force=request.force)
    tokenizer = tokenizer.with_extra_eos(request.extra_eos_token or ())
    file = PromptFile(request.prompt_cache_file, model) if request.prompt_cache_file else None
    directory = disk_directory(request.prompt_cache_dir, wanted=request.wants_disk_cache)
    store = PrefixStore(model, directory=directory) if directory else None
    messages = make_messages(tokenizer, text, request, file)
    if messages is None:
        prompt = file.followed_by(tokenizer, text) if file else encode_prompt(tokenizer, text)
    else:
        prompt = render_prompt(tokenizer, messages, template_variables)
    options = {**options, "store": store, **(file.begin(prompt, store) if file else {})}
    answer = Answer()
    try:
        with progress_bar("reading the prompt", at_least=LONG_PROMPT) as show:
            rest = prompt[len(options.get("seen", ())) :]
            for chunk in stream_generate(model, tokenizer, rest, on_progress=show, **options):
                answer.add(chunk)
                if not request.as_json:
                    write(chunk.text)
    except KeyboardInterrupt:
        answer.is_interrupted = True
    report(answer, request, options)
    if store is not None:
        store.flush()
    if file is not None and not answer.is_interrupted:
        file.finish([*prompt, *answer.tokens], messages, answer.text)
    return 130 if answer.is_interrupted else 0


def report(answer: Answer, request: GenerateRequest, options: Mapping[str, Any]) -> None:
    """Print what is left to print: the statistics, or all of it as one object."""
    speculated = request.draft_model is not None or options.get("prompt_lookup") is not None
    kept = options["store"] is not None or "cache" in options
    if request.as_json:
        write(json.dumps(summary(answer, speculated=speculated, kept=kept), ensure_ascii=False) + "\n")
        return
    write("\n")
    if request.wants_statistics and answer.last:
        _statistics(answer.last, answer.finish_reason, speculated=speculated, kept=kept)


def make_messages(
    tokenizer: Tokenizer, text: str, request: GenerateRequest, file: PromptFile | None
) -> list[dict[str, Any]] | None:
    """The conversation that ends with `text` or how its answer begins; None for a plain text."""
    if request.ignore_chat_template or tokenizer.chat_template is None:
        for name in ("system_prompt", "prefill_response"):
            if getattr(request, name) is not None:
                raise InputError(f"--{name.replace('_', '-')} needs a chat template: this model has none in use")
        return None
    messages = file.messages if file else []
    if request.system_prompt is not None:
        _begin_with(messages, request.system_prompt, request.prompt_cache_file)
    messages.append({"role": "user", "content": text})
    if request.prefill_response is not None:
        messages.append({"role": "assistant", "content": request.prefill_response})
    return messages


def _begin_with(messages: list[dict[str, Any]], system_prompt: str, file: str | None) -> None:
    """Put a system prompt before a conversation that begins; InputError if a saved one began otherwise."""
    system = {"role": "system", "content": system_prompt}
    if not messages:
        messages.append(system)
    elif messages[0] != system:
        way = "with another one" if messages[0]["role"] == "system" else "without one"
        raise InputError(f"--system-prompt: the conversation in {file} has begun {way}: leave it out")


def render_prompt(
    tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], template_variables: Mapping[str, Any]
) -> list[int]:
    """The prompt as the chat template makes it."""
    continued = messages[-1]["role"] == "assistant"
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


def _statistics(last: GenerationChunk, reason: str | None, *, speculated: bool, kept: bool) -> None:
    known = f", {last.cached_tokens} of them known" if kept else ""
    note(f"Prompt: {last.prompt_tokens} tokens{known}, {last.prompt_tps:.1f} tokens/s")
    note(f"Answer: {last.generation_tokens} tokens, {last.generation_tps:.1f} tokens/s ({reason})")
    if speculated:
        found = f"{last.drafted_tokens} tokens drafted, {last.accepted_tokens} accepted"
        note(f"Speculation: {found}, {last.saved_steps} steps saved")
    note(f"Peak memory: {last.peak_memory_gb:.2f} GB")
