"""`afmoe-mlx generate`: one answer on stdout, statistics on stderr."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..api import load
from ..cache import PrefixStore
from ..errors import InputError
from ..generation import GenerationChunk, check_options, encode_prompt, stream_generate
from ..terminal import note, read_stdin, write
from ..tokenizer import Tokenizer
from .draft import with_draft_model
from .kv_bits import KVOptions, tell_kv_bits
from .progress import progress_bar
from .prompt_cache import PromptFile, disk_directory

# Shorter prompts are read before a progress bar would be worth drawing.
LONG_PROMPT = 2048

# What the command itself hands to the template.
RESERVED = {"messages", "tools", "add_generation_prompt", "continue_final_message", "tokenize"}


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to answer, and how the prompt is made of it."""

    model: str
    revision: str | None
    draft_model: str | None
    """Another model, to guess tokens for `model`."""
    kv: KVOptions
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
    prompt_cache_file: str | None
    """A conversation to continue; where there is none, this one is written."""
    prompt_cache_dir: str | None
    disk_cache: bool | None
    """Whether to keep prompts in a folder; None: if `prompt_cache_dir` names one."""


def run(request: Request, options: Mapping[str, Any], *, verbose: bool, as_json: bool) -> int:
    """Answer and print; the exit status, 130 if the answer was interrupted."""
    template_variables = _template_variables(request.chat_template_config)
    check_options(**options)
    text = read_stdin() if request.prompt == "-" else request.prompt
    model, tokenizer = load(
        request.model,
        revision=request.revision,
        context=request.context,
        kv_quantization=request.kv.quantization,
        force=request.force,
    )
    tell_kv_bits(model)
    options = with_draft_model(options, request.draft_model, tokenizer, force=request.force)
    tokenizer = tokenizer.with_extra_eos(request.extra_eos_tokens)
    file = PromptFile(request.prompt_cache_file, model) if request.prompt_cache_file else None
    directory = disk_directory(request.prompt_cache_dir, wanted=request.disk_cache)
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
                if not as_json:
                    write(chunk.text)
    except KeyboardInterrupt:
        answer.is_interrupted = True
    report(answer, request, options, verbose=verbose, as_json=as_json)
    if store is not None:
        store.flush()
    if file is not None and not answer.is_interrupted:
        file.finish([*prompt, *answer.tokens], messages, answer.text)
    return 130 if answer.is_interrupted else 0


@dataclass
class Answer:
    """What came of a request."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    last: GenerationChunk | None = None
    is_interrupted: bool = False

    @property
    def finish_reason(self) -> str | None:
        if self.is_interrupted:
            return "interrupted"
        return self.last.finish_reason if self.last else None

    def add(self, chunk: GenerationChunk) -> None:
        self.text += chunk.text
        self.tokens.append(chunk.token)
        self.last = chunk


def report(answer: Answer, request: Request, options: Mapping[str, Any], *, verbose: bool, as_json: bool) -> None:
    """Print what is left to print: the statistics, or all of it as one object."""
    speculated = request.draft_model is not None or options.get("prompt_lookup") is not None
    kept = options["store"] is not None or "cache" in options
    if as_json:
        write(json.dumps(summary(answer, speculated=speculated, kept=kept), ensure_ascii=False) + "\n")
        return
    write("\n")
    if verbose and answer.last:
        _statistics(answer.last, answer.finish_reason, speculated=speculated, kept=kept)


def make_messages(
    tokenizer: Tokenizer, text: str, request: Request, file: PromptFile | None
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


def summary(answer: Answer, *, speculated: bool, kept: bool) -> dict[str, Any]:
    last = answer.last
    names = ["prompt_tokens", "generation_tokens", "prompt_tps", "generation_tps", "peak_memory_gb"]
    names += ["drafted_tokens", "accepted_tokens", "saved_steps"] if speculated else []
    names += ["cached_tokens"] if kept else []
    found = {name: getattr(last, name, 0) for name in names}
    return {"text": answer.text, "finish_reason": answer.finish_reason} | found


def _statistics(last: GenerationChunk, reason: str | None, *, speculated: bool, kept: bool) -> None:
    known = f", {last.cached_tokens} of them known" if kept else ""
    note(f"Prompt: {last.prompt_tokens} tokens{known}, {last.prompt_tps:.1f} tokens/s")
    note(f"Answer: {last.generation_tokens} tokens, {last.generation_tps:.1f} tokens/s ({reason})")
    if speculated:
        found = f"{last.drafted_tokens} tokens drafted, {last.accepted_tokens} accepted"
        note(f"Speculation: {found}, {last.saved_steps} steps saved")
    note(f"Peak memory: {last.peak_memory_gb:.2f} GB")
