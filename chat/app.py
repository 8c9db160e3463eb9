"""The chat in a terminal: reads lines, streams answers, obeys a few commands."""

import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any

from rich.console import Console
from rich.text import Text

from afmoe_mlx.api import load
from afmoe_mlx.cache import PrefixStore
from afmoe_mlx.commands.draft import with_draft_model
from afmoe_mlx.commands.kv_bits import KVOptions
from afmoe_mlx.commands.prompt_cache import disk_directory
from afmoe_mlx.errors import AfmoeError, InputError, TokenizerError
from afmoe_mlx.generation import check_options
from afmoe_mlx.terminal import printable, read_stdin, write

from .conversation import Conversation

COMMANDS = {
    "/help": "show this list",
    "/clear": "forget the conversation and begin anew",
    "/exit": "leave (Ctrl-D does too)",
}


def run(
    model: str,
    *,
    revision: str | None,
    system_prompt: str | None,
    options: Mapping[str, Any],
    draft_model: str | None = None,
    kv: KVOptions | None = None,
    prompt_cache_dir: str | None = None,
    disk_cache: bool | None = None,
    context: int | None = None,
    force: bool = False,
) -> int:
    """Chat with a model until the user leaves; the exit status. See `load` for context and force.

    What is computed of conversations is kept in memory while the chat runs, and in a folder where one is wanted.
    """
    check_options(**options)
    on_terminal = sys.stdin is not None and sys.stdin.isatty()
    message = "" if on_terminal else read_stdin().strip()
    if not (on_terminal or message):
        raise InputError("stdin is empty: expected a message")
    loaded = load(model, revision=revision, context=context, force=force)
    if loaded[1].chat_template is None:
        raise TokenizerError(f"{model} has no chat template, so it cannot chat: use `afmoe-mlx generate`")
    if kv is not None:
        kv.apply(loaded[0])
    options = with_draft_model(options, draft_model, loaded[1], force=force)
    directory = disk_directory(prompt_cache_dir, wanted=disk_cache)
    store = PrefixStore(loaded[0], directory=directory) if on_terminal or directory else None
    conversation = Conversation(*loaded, system_prompt=system_prompt, options=options, store=store)
    if not on_terminal:
        code = answer_once(conversation, message)
    else:
        Chat(conversation, Console(highlight=False)).loop(model)
        code = 0
    if store is not None:
        store.flush()
    return code


def answer_once(conversation: Conversation, text: str) -> int:
    """Answer what stood on stdin, plainly."""
    try:
        for chunk in conversation.reply(text):
            write(chunk.text)
    except KeyboardInterrupt:
        write("\n")
        return 130
    write("\n")
    return 0


class Chat:
    """The loop of reading and answering on a terminal."""

    def __init__(self, conversation: Conversation, console: Console, read: Callable[[], str] | None = None) -> None:
        self.conversation = conversation
        self.console = console
        self._read = read or (lambda: console.input("[bold]>[/bold] "))

    def loop(self, name: str) -> None:
        """Read and answer until /exit or the end of input."""
        self.console.print(Text(f"{name}. /help lists the commands, Ctrl-D leaves.", style="dim"))
        while True:
            try:
                text = self._read().strip()
            except EOFError:
                self.console.print()
                return
            except KeyboardInterrupt:
                self.console.print()
                continue
            if text == "/exit":
                return
            if text.startswith("/"):
                self.obey(text)
            elif text:
                self.answer(text)

    def obey(self, command: str) -> None:
        """Carry out a line that begins with a slash."""
        if command == "/clear":
            self.conversation.clear()
            self.console.print(Text("Forgotten.", style="dim"))
            return
        if command != "/help":
            self.console.print(Text(f"No command {command}. These are there:", style="dim"))
        for name, meaning in COMMANDS.items():
            self.console.print(Text(f"  {name:8} {meaning}", style="dim"))

    def answer(self, text: str) -> None:
        """Stream an answer; Ctrl-C stops it and keeps what came."""
        last = None
        try:
            # closed at once, wherever Ctrl-C strikes, so that what came is kept
            with closing(self.conversation.reply(text)) as chunks:
                for last in chunks:
                    self.console.out(printable(last.text), end="", highlight=False)
        except KeyboardInterrupt:
            self.console.print(Text(" (stopped)", style="dim"), end="")
        except AfmoeError as error:
            self.console.print(Text(f"error: {error}", style="red"), end="")
        self.console.print()
        if last is not None:
            speed = f"{last.generation_tokens} tokens, {last.generation_tps:.0f} tokens/s"
            self.console.print(Text(speed, style="dim"))
