"""Commands that read and write: /file, /copy, /save, /load, /sessions, /export."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING

from afmoe_mlx.errors import InputError
from afmoe_mlx.messages.reasoning import split_thinking
from afmoe_mlx.terminal import printable

from ..keyboard.completion import Candidate, files, words
from ..screen import clipboard
from ..screen.status import count
from ..sessions.attachments import read_attachment, with_attachments
from ..sessions.export import export_conversation
from .conversation import NONE, whole_number

if TYPE_CHECKING:
    from ..loop import Chat


def attach(chat: Chat, argument: str) -> None:
    """Attach a text file to the next message, say what is attached, or let go of it."""
    if argument == NONE:
        chat.attachments = []
        chat.say("Nothing is attached.")
        return
    if argument:
        attachments = [*chat.attachments, read_attachment(argument)]
        text = with_attachments(attachments, "")
        chat.conversation.tokenizer.check_length(text, chat.conversation.context_limit)
        tokens = chat.conversation.tokenizer.encode(text, add_special_tokens=False)
        if len(tokens) >= chat.conversation.context_limit:
            found = f"{attachments[-1].name} is longer than the context of {chat.conversation.context_limit:,} tokens"
            raise InputError(f"{found}: attach a part of it")
        chat.attachments = attachments
    if not chat.attachments:
        chat.say("Nothing is attached: /file PATH attaches a text file to the next message.")
        return
    for attachment in chat.attachments:
        chat.say(f"{attachment.name}: {count(len(attachment.text), 'character')}, goes with the next message.")
    if argument == "":
        chat.say(f"/file {NONE} lets go of what is attached.")


def complete_attach(chat: Chat, typed: str) -> Iterator[Candidate]:
    yield from files(typed)


def copy(chat: Chat, argument: str) -> None:
    """Copy the last answer without its reasoning, or a block of code in it."""
    if chat.conversation.last_answer is None:
        raise InputError("there is no answer to copy: send a message first")
    text, what = split_thinking(chat.conversation.last_answer)[1].strip(), "the answer"
    if argument:
        blocks = code_blocks(text)
        number = whole_number(argument, "/copy takes the number of a block of code")
        if number > len(blocks):
            found = f"the last answer has {count(len(blocks), 'block')} of code"
            raise InputError(f"/copy {number}: {found}" + (f": /copy {len(blocks)} is the last" if blocks else ""))
        text, what = blocks[number - 1], f"block {number} of {len(blocks)}"
    where = clipboard.copy(text, chat.console.file)
    chat.say(f"{count(len(text), 'character')} {where}: {what}.")


def code_blocks(markdown: str) -> list[str]:
    """The texts of the blocks of code, those in lists and quotes too."""
    from markdown_it import MarkdownIt

    return [token.content for token in MarkdownIt().parse(markdown) if token.type in ("fence", "code_block")]


def save(chat: Chat, argument: str) -> None:
    """Save the conversation from now on, under a name if one is given."""
    chat.saves = True
    if chat.session is None and argument:
        chat.begin_session(argument)
    elif chat.session is not None and argument:
        chat.session.rename(argument)
    chat.save()
    if chat.session is None:
        chat.say("There is nothing to save yet; what is said from now on is saved.")
    else:
        name = chat.session.name
        chat.say(f"Saved as {name}. `afmoe-mlx chat --resume {shlex.quote(name)}` goes on with it, and so does /load.")


def load(chat: Chat, argument: str) -> None:
    """Go on with a saved conversation; one in use that is not saved is left if the user says so."""
    if not argument:
        raise InputError("/load takes the name of a saved conversation: /sessions lists them")
    if chat.session is not None and argument == chat.session.name:
        chat.say("It is this one.")
        return
    question = "What was said here is not saved. Leave it all the same?"
    if chat.conversation.turns and not chat.is_saved and not chat.reader.confirm(question):
        chat.say("Nothing is loaded; /save keeps what was said here.")
        return
    chat.take_up(chat.folder.open(argument))


def complete_session(chat: Chat, typed: str) -> Iterator[Candidate]:
    yield from words(((info.name, info.first_words) for info in chat.folder.list()), typed)


def list_sessions(chat: Chat, argument: str) -> None:
    """The saved conversations, the last first."""
    from rich.table import Table
    from rich.text import Text

    found = chat.folder.list()
    if not found:
        chat.say("There are no saved conversations yet.")
        return
    table = Table.grid(padding=(0, 2))
    table.add_column(overflow="fold")
    table.add_column(no_wrap=True)
    table.add_column(overflow="ellipsis", no_wrap=True, style="dim")
    for info in found:
        is_here = chat.session is not None and info.name == chat.session.name
        about = info.trouble or ("this one" if is_here else info.first_words)
        table.add_row(Text(printable(info.name)), count(info.turns, "turn"), Text(printable(about)))
    chat.show(table)
    chat.say("/load NAME goes on with one.")


def export(chat: Chat, argument: str) -> None:
    """Write the conversation to a file of Markdown or JSON."""
    if not argument:
        raise InputError("/export takes the path of a file to write, which ends in .md or .json")
    conversation = chat.conversation
    overwrite = os.path.isfile(os.path.expanduser(argument))
    if overwrite and not chat.reader.confirm(f"{printable(argument)} is there already. Write over it?"):
        chat.say("Nothing is written.")
        return
    path = export_conversation(
        argument,
        conversation.messages,
        model=chat.model_name,
        settings=conversation.options,
        overwrite=overwrite,
    )
    chat.say(f"Written to {path}.")


def complete_export(chat: Chat, typed: str) -> Iterator[Candidate]:
    yield from files(typed, (".md", ".json"))
