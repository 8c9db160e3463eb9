"""One question from the command line or stdin, answered once."""

import sys
from contextlib import closing

from afmoe_mlx.command_line.answer import Answer, AnswerPrinter, receive, summary, tell_cut_off
from afmoe_mlx.errors import InputError
from afmoe_mlx.generation import ConstraintOptions
from afmoe_mlx.messages import AnswerReader
from afmoe_mlx.terminal import read_stdin, write_json

from .conversation.conversation import Conversation
from .loop import View


def question(argument: str | None) -> str | None:
    """What is asked: what stands on stdin if that is no terminal, then the argument; None for a chat on a terminal."""
    has_terminal = sys.stdin is not None and sys.stdin.isatty()
    if argument is None and has_terminal:
        return None
    piped = "" if has_terminal or (sys.stdin is None and argument) else read_stdin().strip()
    text = "\n\n".join(part for part in (piped, (argument or "").strip()) if part)
    if not text:
        raise InputError(
            "the question is empty: expected a message" if argument else "stdin is empty: expected a message"
        )
    return text


def answer(conversation: Conversation, text: str, view: View, *, as_json: bool) -> int:
    """Print the answer to a message; the exit status, 130 if it was interrupted.

    Plain text, as it comes, its reasoning on stderr; as Markdown where both stdin and stdout are a terminal; or one
    JSON object, as `afmoe-mlx generate --json` prints it.
    """
    if not as_json and view.markdown and _on_terminal():
        return _answer_on_terminal(conversation, text, view)
    with closing(conversation.reply(text)) as chunks:
        found = Answer(AnswerReader(conversation.tokenizer, (), beginning=conversation.opened))
        receive(found, chunks, None if as_json else AnswerPrinter())
    if as_json:
        speculated = any(conversation.options.get(name) for name in ("draft_model", "prompt_lookup"))
        held = ConstraintOptions.of(conversation.options).is_given
        told = summary(found, speculated=speculated, kept=conversation.store is not None, held=held)
        write_json(told)
    else:
        tell_cut_off(found, context=conversation.context_limit)
    return 130 if found.is_interrupted else 0


def _answer_on_terminal(conversation: Conversation, text: str, view: View) -> int:
    from rich.console import Console

    from .screen.display import AnswerDisplay

    shown: list[AnswerDisplay] = []
    chunks = conversation.reply(text, on_progress=lambda done, total: shown[0].progress(done, total))
    found = Answer(AnswerReader(conversation.tokenizer, (), beginning=conversation.opened))
    opened = bool(conversation.opened)
    shown.append(AnswerDisplay(Console(highlight=False), show_thinking=view.thinking, thinking=opened))
    try:
        with shown[0] as display, closing(chunks):
            for chunk in chunks:
                found.add(chunk)
                display.add(chunk.text)
            display.finish(None)
    except KeyboardInterrupt:
        return 130
    tell_cut_off(found, context=conversation.context_limit)
    return 0


def _on_terminal() -> bool:
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))
