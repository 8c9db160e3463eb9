"""Commands about what is said and how: /new, /edit, /undo, /system, /model, /set, /think, /stats and their like."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from rich.text import Text

from afmoe_mlx.errors import FitError, InputError
from afmoe_mlx.messages.reasoning import split_thinking
from afmoe_mlx.messages.tool_formats import format_of
from afmoe_mlx.terminal import printable, size
from afmoe_mlx.values import shown

from ..conversation import settings
from ..keyboard.completion import Candidate, files, models, words
from ..screen.status import context_meter, count, rate

if TYPE_CHECKING:
    from ..conversation.engine import Engine
    from ..loop import Chat

NONE = "none"
FIRST_WORDS = 60


def new(chat: Chat, argument: str) -> None:
    """Begin anew; the system prompt, the model and the settings stay, and what was saved stays saved."""
    before = chat.session.name if chat.conversation.turns and chat.is_saved and chat.session is not None else None
    chat.close_session()
    chat.conversation.clear()
    chat.attachments = []
    chat.say("A new conversation." + (f" The last one is saved: /load {before}" if before else ""))


def regenerate(chat: Chat, argument: str) -> None:
    """Answer the last message anew, or what tools have given for it: no call is made again."""
    if chat.conversation.last_user is not None:
        after = chat.conversation.answers_tools
        chat.say("Again, from what the tools gave." if after else f"Again: {first_words(chat.conversation.last_user)}")
        if chat.conversation.is_greedy:
            chat.say("At temperature 0 the answer is likely the same: /set temperature 0.8")
    chat.answer_again()


def edit(chat: Chat, argument: str) -> None:
    """Change the last message in the line editor."""
    before = last_message(chat)
    _answer_edited(chat, before, chat.reader.edit(before))


def edit_in_editor(chat: Chat, argument: str) -> None:
    """Change the last message in the user's editor."""
    from ..keyboard.editor import edit_text

    before = last_message(chat)
    after = edit_text(before)
    if after is not None:
        chat.say(f"> {first_words(after)}")
    _answer_edited(chat, before, after)


def _answer_edited(chat: Chat, before: str, after: str | None) -> None:
    if after is None or not after.strip():
        chat.say("Nothing is changed.")
    elif after.strip() == before.strip():
        chat.say("It is as it was; /regenerate has it answered anew.")
    else:
        chat.answer_instead(after.strip())


def last_message(chat: Chat) -> str:
    """The user's last message; InputError if there is none."""
    if chat.conversation.last_user is None:
        raise InputError("there is no message to edit: send one first")
    return chat.conversation.last_user


def undo(chat: Chat, argument: str) -> None:
    """Take back turns."""
    turns = whole_number(argument or "1", "/undo takes a number of turns")
    undone = chat.conversation.undo(turns)
    chat.save()
    if not undone:
        chat.say("There is nothing to take back.")
        return
    left = chat.conversation.last_user
    now = f"The last message is now: {first_words(left)}" if left else "The conversation is empty."
    chat.say(f"{count(undone, 'turn')} taken back. {now}")


def system(chat: Chat, argument: str) -> None:
    """Show the system prompt, or change it for what is said from now on."""
    if argument:
        chat.conversation.set_system(None if argument == NONE else argument)
        chat.save()
        chat.say("There is no system prompt now." if argument == NONE else "The system prompt is changed.")
    elif chat.conversation.system_prompt:
        chat.show(Text(printable(chat.conversation.system_prompt)))
        chat.say(f"/system {NONE} removes it.")
    else:
        chat.say("There is no system prompt: /system TEXT gives one.")


def model(chat: Chat, argument: str) -> None:
    """Show the model's name, or go on with another; one that cannot be loaded leaves all as it was."""
    if not argument:
        chat.say(f"{chat.model_name}. /model NAME goes on with another; Tab lists them.")
        return
    if chat.source is None:
        raise InputError("there is no other model here")
    source, options = chat.source, chat.conversation.options
    _go_on(chat, argument, lambda: source.another(argument, options), [])
    chat.say(f"{chat.model_name} answers from now on.")


def adapter(chat: Chat, argument: str) -> None:
    """Show the adapters, or go on with the same model and others; one that does not fit leaves all as it was."""
    if not argument:
        found = ", ".join(map(printable, chat.adapters)) or "There is no adapter"
        chat.say(f"{found}. /adapter DIR goes on with another.")
        return
    if chat.source is None:
        raise InputError("there is no other model here")
    try:
        paths = [] if argument == NONE else shlex.split(argument)
    except ValueError as error:
        raise InputError(f"{shown(argument)}: {error}: expected folders, in quotes where they have spaces") from None
    source, name, options = chat.source, chat.model_name, chat.conversation.options
    _go_on(chat, name, lambda: source.adapted(name, options, paths), paths)
    chat.say(f"{chat.model_name} answers {'with the adapter' if paths else 'without an adapter'} from now on.")


def complete_adapter(chat: Chat, typed: str) -> Iterator[Candidate]:
    yield from files(typed)


def _go_on(chat: Chat, name: str, load: Callable[[], Engine], adapters: list[str]) -> None:
    """Have another model, or the same with other adapters, answer from now on; what is not kept is told."""
    chat.say(f"Loading {name}…")
    try:
        engine = load()
    except FitError as error:
        hint = "beside the one in use; `afmoe-mlx chat --resume --model NAME` goes on with another alone"
        raise FitError(f"{error} ({hint})") from None
    given = {name for name, value in chat.conversation.options.items() if value is not None}
    before, left = chat.conversation.store, given - engine.options.keys()
    chat.conversation.switch(engine.model, engine.tokenizer, engine.options, engine.store)
    chat.model_name, chat.adapters = engine.name, adapters
    if before is not None:
        before.flush()
    chat.save()
    if chat.conversation.tools and format_of(engine.tokenizer) is None:
        chat.say("Its chat template knows no tools: it is not told of any.")
    if "draft_model" in left:
        chat.say("It guesses no tokens: the draft model is the other one's.")
    if "logit_bias" in left:
        chat.say("logit_bias is not kept: its tokens are the other one's.")


def complete_model(chat: Chat, typed: str) -> Iterator[Candidate]:
    yield from models(typed)


def set_option(chat: Chat, argument: str) -> None:
    """Show the settings, or change one."""
    if not argument:
        _show_settings(chat)
        return
    name, *rest = argument.split(maxsplit=1)
    name = settings.full_name(name)
    if rest:
        settings.change(chat.conversation.options, name, rest[0], chat.conversation.model.config.vocab_size)
        chat.save()
    found = next(setting for setting in _settings(chat) if setting.name == name)
    chat.say(f"{found.name} is {found.shown} ({found.source}) · {found.meaning}")


def _settings(chat: Chat) -> list[settings.Setting]:
    return settings.current(chat.conversation.options, chat.conversation.tokenizer.generation_config)


def _show_settings(chat: Chat) -> None:
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, min_width=max(map(len, settings.MEANINGS)))
    for setting in _settings(chat):
        source = "" if setting.source == settings.DEFAULT else setting.source
        table.add_row(setting.name, Text(printable(setting.shown)), source, Text(setting.meaning, style="dim"))
    chat.show(table)
    chat.say("/set temperature 0.3 changes one, /set temperature default takes the model's own.")


def complete_set(chat: Chat, typed: str) -> Iterator[Candidate]:
    name, space, value = typed.partition(" ")
    if not space:
        yield from words(settings.MEANINGS.items(), name)
    else:
        now = [(setting.shown, "now") for setting in _settings(chat) if setting.name == name]
        yield from words([*now, (settings.DEFAULT, "the model's own")], value.lstrip())


def think(chat: Chat, argument: str) -> None:
    """Show reasoning from now on, that of the last answer at once; or fold it."""
    if argument not in ("", "show", "hide"):
        raise InputError(f"/think is {argument!r}: expected show or hide")
    if not argument:
        chat.say(f"Reasoning is {'shown' if chat.view.thinking else 'folded to a line'}: /think show or /think hide")
        return
    chat.view.thinking = argument == "show"
    thought = split_thinking(chat.conversation.last_answer or "")[0].strip()
    if chat.view.thinking and thought:
        chat.show(Text(printable(thought), style="dim"))
    chat.say("Reasoning is shown from now on." if chat.view.thinking else "Reasoning is folded to a line from now on.")


def complete_think(chat: Chat, typed: str) -> Iterator[Candidate]:
    yield from words([("show", "keep it on the screen"), ("hide", "fold it to a line")], typed)


def stats(chat: Chat, argument: str) -> None:
    """Figures of the conversation and its last answer."""
    conversation, last = chat.conversation, chat.last
    chat.say(f"model: {chat.model_name}")
    meter = context_meter(conversation.context_used, conversation.context_limit)
    chat.say(f"conversation: {count(conversation.turns, 'turn')}, {meter}")
    if chat.session is not None:
        chat.say(f"saved in: {chat.session.path}")
    if conversation.kept_bytes:
        chat.say(f"kept of prompts: {size(conversation.kept_bytes)} in memory")
    if last is not None:
        known = f", {last.cached_tokens:,} of them known" if last.cached_tokens else ""
        chat.say(f"last prompt: {last.prompt_tokens:,} tokens{known}, {rate(last.prompt_tps)} tokens/s")
        chat.say(f"last answer: {last.generation_tokens:,} tokens, {rate(last.generation_tps)} tokens/s")
        if last.drafted_tokens:
            chat.say(f"speculation: {last.drafted_tokens:,} tokens drafted, {last.accepted_tokens:,} accepted")
        if (words := conversation.reads.line(last)) is not None:
            chat.say(f"reading: {words}")
        chat.say(f"peak memory: {last.peak_memory_gb:.2f} GB")


def first_words(text: str) -> str:
    """A message cut to a line."""
    line = " ".join(text.split())
    return line if len(line) <= FIRST_WORDS else line[:FIRST_WORDS].rstrip() + "…"


def whole_number(text: str, wish: str) -> int:
    """A number, 1 or more; InputError that begins with `wish` for anything else."""
    if not text.isdecimal() or not int(text[:9]):
        raise InputError(f"{wish}: expected 1 or more, found {text!r}")
    return int(text[:9])
