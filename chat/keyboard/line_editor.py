"""The line editor: history, search in it, several lines, completion."""

import re
from collections.abc import Iterable
from typing import Any

from prompt_toolkit import PromptSession, print_formatted_text
from prompt_toolkit.application import get_app
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition, is_searching
from prompt_toolkit.formatted_text import FormattedText, StyleAndTextTuples
from prompt_toolkit.history import History as EditorHistory
from prompt_toolkit.input.typeahead import clear_typeahead
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.layout.processors import Processor, Transformation, TransformationInput
from prompt_toolkit.search import SearchDirection, start_search, stop_search
from prompt_toolkit.shortcuts import CompleteStyle
from prompt_toolkit.styles import Style

from afmoe_mlx.terminal import printable

from .completion import Complete
from .history import History
from .reader import LEAVE_WORD, PROMPT, forget_typed, is_yes

STYLE = Style.from_dict(
    {
        "prompt": "bold",
        "hint": "ansibrightblack",
        # the terminal's own colours, so that the menu can be read on dark and light ones
        "completion-menu": "noreverse bg:default fg:default",
        "completion-menu.completion": "bg:default fg:default",
        "completion-menu.completion.current": "reverse",
        "completion-menu.meta.completion": "bg:default fg:ansibrightblack",
        "completion-menu.meta.completion.current": "bg:default fg:ansibrightblack",
        "scrollbar.background": "bg:default",
        "scrollbar.button": "reverse",
    }
)
MENU_ROWS = 6
_REORDERING = re.compile("[\u202a-\u202e\u2066-\u2069]")


class LineEditor:
    """Reads messages of one or more lines.

    Enter sends; Alt-Enter and Ctrl-J begin another line; a pasted block stays one message. Ctrl-C clears what is typed,
    and leaves when given twice with nothing typed; so does Ctrl-D with nothing typed. Ctrl-R searches the history,
    and Ctrl-C then gives back the line as it was.
    """

    def __init__(self, history: History, complete: Complete, **terminal: Any) -> None:
        """terminal: `input` and `output` of prompt_toolkit in place of this terminal, for tests."""
        self._complete = complete
        self._may_leave = False  # Ctrl-C has been pressed with nothing typed
        self._before_search = (0, 0)  # the entry of the history that was edited, and the cursor in it
        self._terminal = terminal
        self._session: PromptSession[str] = PromptSession(
            history=_EditorHistory(history),
            completer=_EditorCompleter(complete),
            complete_while_typing=Condition(_is_command),
            complete_in_thread=True,
            complete_style=CompleteStyle.COLUMN,
            reserve_space_for_menu=MENU_ROWS,
            key_bindings=self._keys(),
            **_common(terminal),
        )
        self._session.default_buffer.on_text_changed += self._typed

    def read(self) -> str:
        while True:
            try:
                text = self._session.prompt([("class:prompt", PROMPT)])
            except KeyboardInterrupt:
                if self._may_leave:
                    raise EOFError from None
                self._may_leave = True
                self._say(LEAVE_WORD)
                continue
            self._may_leave = False
            return text

    def edit(self, text: str) -> str | None:
        session: PromptSession[str] = PromptSession(key_bindings=_message_keys(), **_common(self._terminal))
        try:
            return session.prompt([("class:prompt", PROMPT)], default=text)
        except (KeyboardInterrupt, EOFError):
            return None

    def confirm(self, question: str) -> bool:
        session: PromptSession[str] = PromptSession(key_bindings=_line_keys(), **_common(self._terminal))
        try:
            return is_yes(session.prompt([("class:prompt", f"{printable(question)} [y/N] ")]))
        except (KeyboardInterrupt, EOFError):
            return False

    def ask(self, question: str) -> str | None:
        session: PromptSession[str] = PromptSession(key_bindings=_message_keys(), **_common(self._terminal))
        forget_typed()
        clear_typeahead(session.app.input)
        try:
            return session.prompt([("class:prompt", f"{printable(question)} ")])
        except (KeyboardInterrupt, EOFError):
            return None

    def _typed(self, _: object) -> None:
        self._may_leave = self._may_leave and not self._session.default_buffer.text

    def _keys(self) -> KeyBindings:
        keys = _message_keys()

        @keys.add("tab")
        def complete(event: KeyPressEvent) -> None:
            buffer = event.current_buffer
            if buffer.complete_state is not None and buffer.complete_state.completions:
                buffer.complete_next()
                return
            found = list(self._complete(buffer.document.text_before_cursor))
            typed = found[0].replaced if found else 0
            common = _shared_start([candidate.text for candidate in found])
            if len(common) > typed:
                buffer.delete_before_cursor(typed)
                buffer.insert_text(common)
            elif found:
                buffer.start_completion(select_first=False)

        @keys.add("c-c", filter=~is_searching)
        def clear_or_leave(event: KeyPressEvent) -> None:
            if event.current_buffer.text:
                event.current_buffer.reset()
            else:
                event.app.exit(exception=KeyboardInterrupt, style="class:aborting")

        @keys.add("c-r", filter=~is_searching)
        def begin_search(event: KeyPressEvent) -> None:
            self._before_search = event.current_buffer.working_index, event.current_buffer.cursor_position
            start_search(direction=SearchDirection.BACKWARD)

        @keys.add("c-c", filter=is_searching)
        @keys.add("c-g", filter=is_searching)
        def abort_search(event: KeyPressEvent) -> None:
            stop_search()  # which stays at what a repeated Ctrl-R went to
            event.current_buffer.working_index, event.current_buffer.cursor_position = self._before_search

        return keys

    def _say(self, text: str) -> None:
        print_formatted_text(FormattedText([("class:hint", text)]), style=STYLE, output=self._session.output)


class _InOrder(Processor):
    """Shows a mark that would reorder the line as U+FFFD; other control characters the editor shows by itself."""

    def apply_transformation(self, transformation_input: TransformationInput) -> Transformation:
        shown: StyleAndTextTuples = [
            (style, _REORDERING.sub("\ufffd", text)) for style, text, *_ in transformation_input.fragments
        ]
        return Transformation(shown)


def _common(terminal: dict[str, Any]) -> dict[str, Any]:
    return {
        # lines are broken by the keys below; prompt_toolkit's own way puts the search at the foot of the screen
        "multiline": False,
        "prompt_continuation": " " * len(PROMPT),
        "style": STYLE,
        "include_default_pygments_style": False,
        "mouse_support": False,
        "enable_suspend": True,
        "enable_open_in_editor": True,  # Ctrl-X Ctrl-E
        "tempfile_suffix": ".md",
        "input_processors": [_InOrder()],
        **terminal,
    }


def _line_keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add(Keys.Vt100MouseEvent)
    def skip(event: KeyPressEvent) -> None:
        """Colours within text, such as ESC[31m, are read as the mouse's too, and prompt_toolkit fails at them."""

    return keys


def _message_keys() -> KeyBindings:
    """Enter sends; Alt-Enter and Ctrl-J break the line."""
    keys = _line_keys()

    @keys.add("enter", filter=~is_searching)
    def send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter", filter=~is_searching)
    @keys.add("c-j", filter=~is_searching)
    def break_line(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    return keys


def _shared_start(texts: list[str]) -> str:
    """What all texts begin with."""
    low, high = min(texts, default=""), max(texts, default="")
    return low[: next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))]


def _is_command() -> bool:
    return get_app().current_buffer.document.text_before_cursor.startswith("/")


class _EditorHistory(EditorHistory):
    """A `History` as prompt_toolkit wants it: the newest first."""

    def __init__(self, history: History) -> None:
        super().__init__()
        self._kept = history

    def load_history_strings(self) -> Iterable[str]:
        return reversed(self._kept.entries)

    def append_string(self, string: str) -> None:
        before = len(self._kept.entries)
        self._kept.append(string)
        if len(self._kept.entries) > before:
            self._loaded_strings.insert(0, string)

    def store_string(self, string: str) -> None:
        """Kept by `append_string` already."""


class _EditorCompleter(Completer):
    def __init__(self, complete: Complete) -> None:
        self._complete = complete

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        for candidate in self._complete(document.text_before_cursor):
            yield Completion(
                candidate.text,
                start_position=-candidate.replaced,
                display=candidate.shown,
                display_meta=candidate.meaning,
            )
