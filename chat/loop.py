"""The chat's loop: reads a line, runs the command or streams the answer, saves, until the user leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console, RenderableType
from rich.text import Text

from afmoe_mlx.command_line.answer import cut_off, falls_short
from afmoe_mlx.errors import AfmoeError, ContextFullError, SessionError, is_device_trouble
from afmoe_mlx.generation import GenerationChunk
from afmoe_mlx.messages.reasoning import is_open
from afmoe_mlx.terminal import printable

from .conversation import settings
from .conversation.context import LITTLE_ROOM, turns_to_drop
from .conversation.conversation import Chunks, Conversation
from .conversation.engine import EngineSource, lasting_name
from .keyboard.completion import Candidate
from .keyboard.reader import Reader
from .person import PersonAtTerminal
from .screen.display import AnswerDisplay
from .screen.transcript import show_transcript
from .sessions.attachments import Attachment, with_attachments
from .sessions.folder import SessionFolder
from .sessions.session import Session
from .tools.agent import MOST_ROUNDS, Agent
from .tools.permissions import Permissions
from .tools.toolbox import Toolbox

if TYPE_CHECKING:
    from afmoe_mlx.generation.loop import Progress

NOTHING_CAME = "Nothing came of it, so the message is not kept; the up arrow brings it back."


@dataclass
class View:
    """How answers are shown."""

    markdown: bool = True
    thinking: bool = False
    """Whether reasoning is kept on the screen."""


@dataclass(frozen=True)
class Question:
    """What is to be answered: `ask` begins the answer, `text` is the message; `replaces`: instead of the last one.

    text: "" where tools have given what is answered.
    """

    ask: Callable[[Progress], Chunks]
    text: str
    replaces: bool = False


class Commands(Protocol):
    """The slash commands, as the loop needs them."""

    def take(self, chat: Chat, line: str) -> str | None:
        """Obey a line that is a command; of any other, the message to send, "" for none."""

    def complete(self, chat: Chat, text: str) -> Iterable[Candidate]:
        """What a line may go on with; `text` is what stands before the cursor."""


class Chat:
    """A conversation on a terminal.

    commands: what obeys lines that begin with a slash. model_name: what the user calls the model. source: loads another
    one for /model; None: there is no other. folder: where sessions are. saves: whether this one is saved there without
    being told to. agent: what answers the model's calls of tools; None: there are none yet.
    """

    def __init__(
        self,
        conversation: Conversation,
        console: Console,
        reader: Reader,
        commands: Commands,
        *,
        model_name: str = "demo",
        source: EngineSource | None = None,
        folder: SessionFolder | None = None,
        saves: bool = False,
        view: View | None = None,
        agent: Agent | None = None,
        adapters: Sequence[str] = (),
    ) -> None:
        self.conversation, self.console, self.reader, self.commands = conversation, console, reader, commands
        self.model_name, self.source, self.adapters = model_name, source, list(adapters)
        self.folder = folder or SessionFolder()
        self.saves = saves
        self.session: Session | None = None
        self.view = view or View()
        self.agent = agent or Agent(Toolbox(), Permissions(), PersonAtTerminal(console, reader))
        self.attachments: list[Attachment] = []
        self.last: GenerationChunk | None = None
        """The last token of the last answer, with its figures."""
        self.done = False
        self._has_begun = False  # the session, here
        self._cannot_save = False

    def greet(self) -> None:
        """Say who answers."""
        self.say(f"{self.model_name}. /help lists the commands, Ctrl-D leaves.")

    def loop(self) -> None:
        """Read and obey or answer until the user leaves; what was said is saved then, however they leave."""
        try:
            while not self.done:
                self._turn()
            if self.conversation.turns and self.is_saved:
                self.say("Saved: `afmoe-mlx chat --resume` goes on with it.")
            elif self._cannot_save:
                self.say("The end of this conversation is not saved.")
        finally:
            self.save()
            self.close_session()

    def _turn(self) -> None:
        try:
            text = self.reader.read()
        except EOFError:
            self.done = True
            return
        try:
            self.take(text)
        except KeyboardInterrupt:
            self.say("(stopped)")
        except (AfmoeError, OSError, MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not is_device_trouble(error):
                raise
            self.error(error)

    def take(self, line: str) -> None:
        """Obey a line that is a command, and answer any other. Raises what a command or an answer does."""
        if text := self.commands.take(self, line):
            self.answer(text)

    # --- answers

    def answer(self, text: str) -> None:
        """Answer a message, with what is attached to it."""
        conversation, whole = self.conversation, with_attachments(self.attachments, text)
        if self._answer(Question(lambda progress: conversation.reply(whole, on_progress=progress), whole)):
            self.attachments = []
            self._finish_turn()

    def answer_instead(self, text: str) -> None:
        """Answer `text` in place of the last message."""
        conversation = self.conversation
        ask = lambda progress: conversation.edit(text, on_progress=progress)  # noqa: E731
        if self._answer(Question(ask, text, replaces=True)):
            self._finish_turn()

    def answer_again(self) -> None:
        """Answer the last message anew, or what tools have given for it."""
        conversation, text = self.conversation, self.conversation.last_user or ""
        ask = lambda progress: conversation.regenerate(on_progress=progress)  # noqa: E731
        if self._answer(Question(ask, text, replaces=True)):
            self._finish_turn()

    def use_tools(self, schemas: Sequence[Mapping[str, Any]]) -> None:
        """Offer the model these tools of a file, in OpenAI's form, in place of those before."""
        self.agent.toolbox.use(schemas)
        self.conversation.tools = self.agent.toolbox.schemas

    def _finish_turn(self) -> None:
        """Have the calls of the last answer answered, and what comes of them, to the end of the turn."""
        conversation = self.conversation
        ask = lambda progress: conversation.go_on(on_progress=progress)  # noqa: E731
        try:
            is_finished = self.agent.finish_turn(conversation, lambda: self._answer(Question(ask, "", replaces=True)))
        finally:
            self.save()
        if conversation.open_calls:
            found = "Not run" if is_finished else f"{MOST_ROUNDS} times tools were called: that is enough"
            self.say(f"{found}. A message goes on without it, /regenerate has it answered anew.")

    def _answer(self, question: Question) -> bool:
        """Stream an answer; Ctrl-C stops it and keeps what came. Whether anything did."""
        shown: list[AnswerDisplay] = []
        chunks = self._begin(question, lambda done, total: shown[0].progress(done, total))
        if chunks is None:
            return False
        display = AnswerDisplay(
            self.console,
            self.conversation.reader(),
            show_thinking=self.view.thinking,
            markdown=self.view.markdown,
        )
        shown.append(display)
        last, asked = None, self.conversation.current_messages
        try:
            with display, closing(chunks):
                self.save()
                for last in chunks:
                    display.add(last.text)
                used, limit = self.conversation.context_used, self.conversation.context_limit
                read = self.conversation.reads.short(last)
                display.finish(last, experts=read, context_used=used, context_limit=limit)
            if last is not None:
                self._tell_cut_off(last)
        except SystemExit:  # told to end: what was asked is there when the conversation is resumed
            if last is None:
                self.conversation.restore(asked)
            raise
        except KeyboardInterrupt:
            if last is None:
                self.say(NOTHING_CAME if question.text else "Nothing came of it: /regenerate goes on.")
        finally:
            self.last = last or self.last
            self.save()
        self.console.print()  # what belongs together stands together
        return last is not None

    def _tell_cut_off(self, last: GenerationChunk) -> None:
        """A line about an answer that a limit has ended, and what to do; and about one that falls short."""
        is_reasoning = is_open(self.conversation.last_answer or "")
        commands = {"max_tokens": "/set max_tokens N", "reasoning_budget": "/set reasoning_budget N"}
        limit = self.conversation.context_limit
        if words := cut_off(last, context=limit, is_reasoning=is_reasoning, **commands):
            is_full = last.prompt_tokens + last.generation_tokens >= limit
            more = " Before the next one you are asked whether to drop the oldest turns." if is_full else ""
            self.say(words + more)
        if words := falls_short(last):
            self.say(words)

    def _begin(self, question: Question, progress: Progress) -> Chunks | None:
        """The answer, not begun yet; None if the user would rather stop than have the oldest turns dropped for it."""
        conversation = self.conversation
        try:
            room = None if question.replaces else conversation.room_for(question.text)
            if room is None or room >= min(LITTLE_ROOM, conversation.context_limit // 8):
                return question.ask(progress)
        except ContextFullError:
            room = 0
        number = turns_to_drop(conversation, question.text, replaces=question.replaces)
        if not number:  # there is nothing to drop, or that would not help: answered in what is left, or refused
            return question.ask(progress)
        left = f"{room} tokens are left for the answer" if room and room > 0 else "the message does not fit any more"
        turns = "the oldest turn" if number == 1 else f"the oldest {number} turns"
        self.say(f"The context of {conversation.context_limit:,} tokens is full: {left}.")
        if not self.reader.confirm(f"Drop {turns} of the conversation?"):
            self.say("Nothing is dropped and nothing sent; the up arrow brings the message back. /new begins anew.")
            return None
        conversation.drop_oldest(number)
        return question.ask(progress)

    # --- what is kept

    def save(self) -> None:
        """Write what is new of the conversation to its session, which begins with the first message."""
        asked = [message["content"] for message in self.conversation.current_messages if message["role"] == "user"]
        try:
            if self.session is None and self.saves and asked:
                self.begin_session(words=asked[0])
            if self.session is not None:
                self.session.save(self.conversation, model=lasting_name(self.model_name))
            self._cannot_save = False
        except SessionError as error:
            if not self._cannot_save:
                self.error(error)
            self._cannot_save = True

    @property
    def is_saved(self) -> bool:
        """Whether all of the conversation is on the disk; tries once more if it is not."""
        self.save()
        return self.session is not None and not self._cannot_save

    def begin_session(self, name: str | None = None, *, words: str = "") -> None:
        """Make a session for the conversation; see `SessionFolder.create`."""
        self.session = self.folder.create(name, words=words, model=lasting_name(self.model_name))
        self._has_begun = True

    def close_session(self) -> None:
        """Let others have the session; one that began here and in which nothing was said is removed."""
        session, self.session = self.session, None
        if session is None:
            return
        if self._has_begun and all(message["role"] == "system" for message in session.messages):
            session.path.unlink(missing_ok=True)
        session.close()

    def take_up(self, session: Session, options: Mapping[str, Any] | None = None) -> None:
        """Go on with a saved conversation, by its settings and `options`, which win."""
        self.close_session()
        self.session, self._has_begun = session, False
        for warning in session.warnings:
            self.say(f"{session.name}: {warning}")
        self.conversation.restore(session.messages)
        self.conversation.options.update(settings.usable(session.settings) | dict(options or {}))
        self.show_history()
        if session.model not in ("", lasting_name(self.model_name)):
            self.say(f"{session.model} has answered so far, {self.model_name} does from now on.")

    # --- the terminal

    def show_history(self) -> None:
        """Show the end of the conversation."""
        view = self.view
        show_transcript(self.console, self.conversation.messages, show_thinking=view.thinking, markdown=view.markdown)
        self.console.print()

    def say(self, text: str) -> None:
        """A word of the program's own; made printable here."""
        self.show(Text(printable(text), style="dim"))

    def error(self, error: object) -> None:
        """What went wrong, in a line."""
        lines = str(error).splitlines() or ["out of memory"]
        self.show(Text(f"error: {printable(lines[0])}", style="red"))

    def show(self, renderable: RenderableType) -> None:
        """Text or a table; printable already."""
        self.console.print(renderable)

    def complete(self, text: str) -> list[Candidate]:
        """What a line may go on with, for the editor."""
        return list(self.commands.complete(self, text))
