"""Text that comes in pieces, read by generators that yield wherever they have to wait for more.

So a format is read by code that looks as if the whole text were there, and no place where a text may be cut is special.
"""

import re
from collections.abc import Generator
from typing import TypeVar

from ..cache import shared_prefix

T = TypeVar("T")
Waiting = Generator[None, None, T]
"""What yields until there is enough text to return a T."""

_SPACE = re.compile(r"[ \t\r\n]*")


class MalformedError(Exception):
    """What came is not what the format has there; the message says why."""


class Incoming:
    """What has come of a text and nobody has claimed yet, read up to `at`."""

    def __init__(self) -> None:
        self.text, self.at, self.is_ended = "", 0, False

    def claim(self) -> str:
        """Take what has been read since the last claim."""
        claimed, self.text, self.at = self.text[: self.at], self.text[self.at :], 0
        return claimed

    def peek(self) -> Waiting[str]:
        """The next character, "" at the end of the text."""
        while self.at == len(self.text) and not self.is_ended:
            yield
        return self.text[self.at : self.at + 1]

    def follows(self, literal: str) -> Waiting[bool]:
        """Whether `literal` comes next."""
        while not self.text.startswith(literal, self.at):
            if self.is_ended or not literal.startswith(self.text[self.at : self.at + len(literal)]):
                return False
            yield
        return True

    def skip(self, literal: str) -> Waiting[bool]:
        """Read over `literal`, if it comes next: whether it did."""
        found = yield from self.follows(literal)
        if found:
            self.at += len(literal)
        return found

    def expect(self, literal: str) -> Waiting[None]:
        """Read over `literal`; MalformedError, before all of it, if something else comes."""
        if not (yield from self.skip(literal)):
            raise self.unexpected(literal, after=self._common(literal))

    def expect_last(self, literal: str) -> Waiting[None]:
        """As `expect`, of what the end of the text may have cut off."""
        if not (yield from self.skip(literal)):
            common = self._common(literal)
            if self.at + common < len(self.text):
                raise self.unexpected(literal, after=common)
            self.at = len(self.text)

    def run(self, characters: re.Pattern[str]) -> Waiting[str]:
        """Read over all that `characters`, a class repeated any number of times, matches; what it was."""
        pieces = []
        while True:
            found = characters.match(self.text, self.at)
            assert found  # if only nothing
            pieces.append(found[0])
            self.at += len(pieces[-1])
            if self.at < len(self.text) or self.is_ended:
                return "".join(pieces)
            yield

    def spaces(self) -> Waiting[str]:
        """Read over white space."""
        return (yield from self.run(_SPACE))

    def take(self, count: int) -> Waiting[str]:
        """Read over so many characters; MalformedError if the text ends first."""
        while len(self.text) - self.at < count:
            if self.is_ended:
                self.at = len(self.text)
                raise self.unexpected("")
            yield
        self.at += count
        return self.text[self.at - count : self.at]

    def until(self, literal: str) -> Waiting[str]:
        """What comes before `literal`, read over with it; MalformedError if the text ends first."""
        searched = 0
        while (found := self.text.find(literal, self.at + searched)) < 0:
            if self.is_ended:
                self.at = len(self.text)
                raise self.unexpected(literal)
            searched = max(0, len(self.text) - self.at - len(literal) + 1)
            yield
        before, self.at = self.text[self.at : found], found + len(literal)
        return before

    def up_to(self, literal: str) -> Waiting[bool]:
        """Read up to `literal`, as far as is certain at each time; False if the text ends without it."""
        while (found := self.text.find(literal, self.at)) < 0:
            if self.is_ended:
                self.at = len(self.text)
                return False
            self.at = max(self.at, len(self.text) - begun(literal, self.text))
            yield
        self.at = found
        return True

    def unexpected(self, expected: str, *, after: int = 0) -> MalformedError:
        """The error of the next character, or the one that comes `after` so many."""
        if self.at + after == len(self.text):
            return MalformedError("the answer ends inside the call")
        return MalformedError(f"expected {expected}, found {self.text[self.at + after]!r}")

    def _common(self, literal: str) -> int:
        """How many characters are next as in `literal`."""
        return shared_prefix(literal, self.text[self.at : self.at + len(literal)])


def begun(literal: str, text: str) -> int:
    """How many characters at the end of `text` may be the beginning of `literal`."""
    return next((n for n in range(min(len(literal) - 1, len(text)), 0, -1) if text.endswith(literal[:n])), 0)
