"""Stop strings: an answer's text ends at one, however it straddles the pieces that the text comes in."""

import reprlib
from collections.abc import Iterable, Sequence

from ..errors import InputError


class StopStrings:
    """Holds back text that might begin a stop string, so that none ever leaks, however it straddles tokens.

    The text ends where the occurrence begins that is complete first; of several complete at the same character, the
    longest counts. So the outcome depends on the text alone, not on the pieces it came in. Raises InputError for a
    stop string that is empty or not a string.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        if isinstance(stop, str):
            raise InputError(f"stop is the string {reprlib.repr(stop)}, expected a list of strings")
        if not isinstance(stop, Iterable):
            raise InputError(f"stop is {reprlib.repr(stop)}, expected a list of strings")
        for entry in stop:
            if not isinstance(entry, str) or not entry:
                raise InputError(f"a stop string is {reprlib.repr(entry)}, expected text that is not empty")
        self.matched: str | None = None
        """The stop string that ended the text, or None while none has."""
        self._stop = tuple(stop)
        self._held = ""

    def push(self, text: str) -> str:
        """Takes the next piece and returns what is safe to show: '' once a stop string has been met."""
        if self.matched is not None:
            return ""
        pending = self._held + text
        occurrences = [(start + len(stop), start, stop) for stop in self._stop if (start := pending.find(stop)) >= 0]
        if occurrences:
            _, safe, self.matched = min(occurrences)
            self._held = ""
        else:
            safe = len(pending) - self._begun(pending)
            self._held = pending[safe:]
        return pending[:safe]

    def finish(self) -> str:
        """Returns what was held back and turned out harmless, as no more text comes."""
        held, self._held = self._held, ""
        return held

    def _begun(self, text: str) -> int:
        """The length of the longest end of `text` that begins a stop string."""
        longest = max(map(len, self._stop), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stop):
                return length
        return 0
