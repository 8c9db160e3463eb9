"""`afmoe-mlx generate`: one answer on stdout, or many as JSON lines; statistics on stderr."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..api import load
from ..cache import PrefixStore
from ..command_line.answer import Answer, AnswerPrinter, receive, summary, tell_cut_off
from ..command_line.batch import PrintedBatch
from ..command_line.draft import with_draft_model
from ..command_line.experts import WatchedReads, tell_experts
from ..command_line.generation_config import sampling_in_words, tell_unused_keys
from ..command_line.hosts import tell_hosts
from ..command_line.kv_bits import tell_kv_bits
from ..command_line.length import check_length
from ..command_line.progress import progress_bar
from ..command_line.prompt_cache import PromptFile, disk_directory
from ..command_line.prompts_file import PromptLine, read_prompts
from ..command_line.requests.answering import GenerateRequest, or_demo
from ..command_line.self_test import suggest_self_test
from ..command_line.template import read_template, template_variables
from ..command_line.tools import check_template, read_tools, tool_choice
from ..errors import InputError
from ..generation import (
    MAX_ROWS,
    BatchAnswers,
    GenerationChunk,
    check_options,
    encode_prompt,
    is_constrained,
    stream_generate,
)
from ..messages import AnswerReader
from ..messages.prompts import for_template
from ..messages.reasoning import opened_by
from ..models import CausalLM
from ..terminal import note, read_stdin, write_json
from ..tokenizer import Tokenizer

# Shorter prompts are read before a progress bar would be worth drawing.
LONG_PROMPT = 2048


@dataclass(frozen=True)
class _Shared:
    """What all answers to a request are made with."""

    request: GenerateRequest
    model: CausalLM
    tokenizer: Tokenizer
    options: Mapping[str, Any]
    """Those of `stream_generate`."""
    variables: Mapping[str, Any]
    """What else the chat template sees, the tools included."""
    store: PrefixStore | None


def run(request: GenerateRequest) -> int:
    """Answer and print; the exit status, 130 if the answer was interrupted."""
    name = or_demo(request.model)
    template, variables = read_template(request.chat_template), template_variables(request.chat_template_config)
    tools = read_tools(request.tools)
    choice: dict[str, Any] = {"tools": tools, "tool_choice": tool_choice(request.tool_choice)}
    options: dict[str, Any] = request.stream_options | (choice if request.tool_choice else {})
    check_options(**options)
    tools = None if request.tool_choice == "none" else tools
    lines = None if request.prompts is None else read_prompts(request.prompts)
    text = read_stdin() if request.prompt == "-" else request.prompt or ""
    check_length(text, name, revision=request.revision)
    model, tokenizer = load(
        name,
        revision=request.revision,
        context=request.context,
        kv_quantization=request.kv.quantization,
        experts_in_memory=request.experts_in_memory,
        **request.adapters,
        **request.on_hosts(),
        force=request.force,
    )
    tell_kv_bits(model)
    tell_experts(model)
    tell_hosts(model)
    tell_unused_keys(tokenizer)
    suggest_self_test(name)
    options = with_draft_model(options, request.draft_model, tokenizer, force=request.force)
    tokenizer = tokenizer if template is None else tokenizer.with_chat_template(template)
    if tools is not None:
        check_template(tokenizer)
    directory = disk_directory(request.prompt_cache_dir, wanted=request.wants_disk_cache)
    store = PrefixStore(model, directory=directory) if directory else None
    variables["tools"] = tools
    shared = _Shared(request, model, tokenizer, options, variables, store)
    return _answer_one(text, shared) if lines is None else _answer_all(lines, shared)


def _answer_one(text: str, shared: _Shared) -> int:
    """Answer one message and print the answer as it comes; the exit status, 130 if it was interrupted."""
    request, model, tokenizer, store = shared.request, shared.model, shared.tokenizer, shared.store
    file = PromptFile(request.prompt_cache_file, model) if request.prompt_cache_file else None
    messages = make_messages(tokenizer, text, request, file)
    if messages is None:
        prompt = file.followed_by(tokenizer, text) if file else encode_prompt(tokenizer, text)
    else:
        prompt = render_prompt(tokenizer, messages, shared.variables)
    options = {**shared.options, "store": store, **(file.begin(prompt, store) if file else {})}
    beginning = request.prefill_response or opened_by(tokenizer, prompt)
    answer = Answer(AnswerReader(tokenizer, shared.variables["tools"] or (), beginning=beginning))
    with progress_bar("reading the prompt", at_least=LONG_PROMPT) as show:
        reads = WatchedReads(model)
        rest = prompt[len(options.get("seen", ())) :]
        chunks = stream_generate(model, tokenizer, rest, on_progress=reads.during(show), **options)
        receive(answer, chunks, None if request.as_json else AnswerPrinter())
    context, sampling = model.config.max_position_embeddings, sampling_in_words(tokenizer, options)
    report(answer, request, options, context=context, sampling=sampling, reads=reads)
    if store is not None:
        store.flush()
    if file is not None and not answer.is_interrupted:
        file.finish([*prompt, *answer.tokens], messages, beginning + answer.text)
    return 130 if answer.is_interrupted else 0


def _answer_all(lines: Sequence[PromptLine], shared: _Shared) -> int:
    """Answer the lines of a file, each printed when it is finished; the exit status, as `PrintedBatch.run` has it."""
    request, model, store = shared.request, shared.model, shared.store
    if not model.takes_batches:
        note("One prompt is answered at a time", dim=True)
    step, rows = request.prefill_step_size, request.max_rows or MAX_ROWS
    batch = BatchAnswers(model, shared.tokenizer, max_rows=rows, prefill_step_size=step, store=store)
    printed = PrintedBatch(batch, kept=store is not None)
    options = {name: value for name, value in shared.options.items() if name != "prefill_step_size"}
    for line in lines:
        with line.blamed():
            prompt, answer = _begun(line, shared)
            printed.add(line, prompt, options, answer)
    code = printed.run()
    if request.wants_statistics:
        printed.tell()
    if store is not None:
        store.flush()
    return code


def _begun(line: PromptLine, shared: _Shared) -> tuple[list[int], Answer]:
    """The prompt of a line, and its answer, which may have begun there."""
    tokenizer, variables = shared.tokenizer, shared.variables
    is_none = line.options.get("tool_choice") == "none"
    tools = None if is_none else line.options.get("tools", variables["tools"])
    messages = _messages_of(line, tokenizer, shared.request)
    if tools is not None:
        if messages is None:
            raise InputError("tools need a chat template: this model has none in use")
        check_template(tokenizer)
    if messages is None:
        return encode_prompt(tokenizer, line.text or ""), Answer(AnswerReader(tokenizer))
    prompt = render_prompt(tokenizer, messages, {**variables, "tools": tools})
    last = messages[-1]
    beginning = last["content"] if last["role"] == "assistant" else opened_by(tokenizer, prompt)
    return prompt, Answer(AnswerReader(tokenizer, tools or (), beginning=beginning))


def _messages_of(line: PromptLine, tokenizer: Tokenizer, request: GenerateRequest) -> list[dict[str, Any]] | None:
    """The conversation that a line asks to go on; None for a plain text."""
    if line.text is not None:
        return make_messages(tokenizer, line.text, request, None)
    if request.ignore_chat_template or tokenizer.chat_template is None:
        raise InputError("messages need a chat template: this model has none in use")
    messages = list(line.messages or [])
    if request.system_prompt is not None and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": request.system_prompt})
    if request.prefill_response is not None:
        messages.append({"role": "assistant", "content": request.prefill_response})
    if messages[-1]["role"] == "assistant" and not isinstance(messages[-1].get("content"), str):
        raise InputError("the last message is an answer without text, which cannot be gone on with")
    return messages


def report(
    answer: Answer,
    request: GenerateRequest,
    options: Mapping[str, Any],
    *,
    context: int,
    sampling: str,
    reads: WatchedReads,
) -> None:
    """Print what is left to print: how it ended, the statistics and how was sampled, or all of it as one object."""
    speculated = request.draft_model is not None or options.get("prompt_lookup") is not None
    kept = options["store"] is not None or "cache" in options
    if request.as_json:
        told = summary(answer, speculated=speculated, kept=kept, held=is_constrained(options))
        write_json(told | reads.figures(answer.last))
        return
    tell_cut_off(answer, context=context)
    if request.wants_statistics and answer.last:
        _statistics(answer.last, answer.finish_reason, speculated=speculated, kept=kept)
        if (words := reads.line(answer.last)) is not None:
            note(f"Reading: {words}")
        note(f"Sampling: {sampling}")


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
    begun = messages[-1:] if continued else []  # as it is
    return tokenizer.apply_chat_template(
        [*for_template(messages[: len(messages) - len(begun)], tokenizer), *begun],
        add_generation_prompt=not continued,
        continue_final_message=continued,
        **template_variables,
    )


def _statistics(last: GenerationChunk, reason: str | None, *, speculated: bool, kept: bool) -> None:
    known = f", {last.cached_tokens} of them known" if kept else ""
    note(f"Prompt: {last.prompt_tokens} tokens{known}, {last.prompt_tps:.1f} tokens/s")
    note(f"Answer: {last.generation_tokens} tokens, {last.generation_tps:.1f} tokens/s ({reason})")
    if speculated:
        found = f"{last.drafted_tokens} tokens drafted, {last.accepted_tokens} accepted"
        note(f"Speculation: {found}, {last.saved_steps} steps saved")
    note(f"Peak memory: {last.peak_memory_gb:.2f} GB")
