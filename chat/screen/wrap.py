"""Wrapping styled text to a width, by display cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.cells import cell_len

if TYPE_CHECKING:
    from rich.text import Text

JOINER, EMOJI_STYLE = "\u200d", "\ufe0f"
# Not at the start of a line, not at its end: the commonest of the rules of Chinese and Japanese line breaking.
NOT_FIRST = frozenset("、。，．！？；：」』）】》〉〕｝”’…ー々ゝっゃゅょッャュョ,.!?;:)]}%")
NOT_LAST = frozenset("「『（【《〈〔｛“‘([{")


def wrap(text: Text, width: int) -> list[Text]:
    """`text` as lines of at most `width` cells without spaces at their ends; its own line breaks are kept.

    Broken at spaces, between Chinese or Japanese characters, and anywhere in a word that is longer than a line.
    """
    lines = []
    for line in text.split("\n", allow_blank=True):
        for part in line.divide(breaks(line.plain, width)):
            part.rstrip()
            lines.append(part)
    return lines


def fold(text: Text, width: int) -> list[Text]:
    """One line as rows of at most `width` cells, cut anywhere, as a terminal does."""
    offsets, used = [], 0
    for start, _, cells in clusters(text.plain):
        if used and used + cells > width:
            offsets.append(start)
            used = 0
        used += cells
    return list(text.divide(offsets))


def breaks(line: str, width: int) -> list[int]:
    """Where to cut a line so that no part is wider than `width` cells, spaces at the ends of parts not counted."""
    if line.isascii() and len(line) <= width:
        return []
    offsets: list[int] = []
    used = used_at_chance = chance = 0  # cells since the last cut; the last place where a cut is welcome
    before = ""
    for start, cluster, cells in clusters(line):
        if _welcome(before, cluster):
            chance, used_at_chance = start, used
        if used and used + cells > width and not cluster.isspace():
            last = offsets[-1] if offsets else 0
            is_inside = bool(line[last:chance].strip())  # not after the indentation, which the word stays behind
            at, gone = (chance, used_at_chance) if is_inside else (start, used)
            offsets.append(at)
            used -= gone
        used += cells
        before = cluster
    return offsets


def clusters(line: str) -> list[tuple[int, str, int]]:
    """(offset, characters, cells) of what must stay together: a character, what combines with it, joined emoji.

    Terminals disagree on the width of joined emoji: it is the widest here, that of each apart.
    """
    if line.isascii():
        return [(offset, character, 1) for offset, character in enumerate(line)]
    found: list[tuple[int, str, int]] = []
    for offset, character in enumerate(line):
        cells = cell_len(character)
        if found and (cells == 0 or found[-1][1].endswith(JOINER)):
            start, cluster, width = found[-1]
            found[-1] = (start, cluster + character, 2 if character == EMOJI_STYLE and width == 1 else width + cells)
        else:
            found.append((offset, character, cells))
    return found


def _welcome(before: str, cluster: str) -> bool:
    """Whether a line may break between two clusters."""
    if not before or cluster.isspace():
        return False
    if before.isspace():
        return True
    return (_is_ideograph(before) or _is_ideograph(cluster)) and cluster not in NOT_FIRST and before not in NOT_LAST


def _is_ideograph(cluster: str) -> bool:
    """Chinese and Japanese characters and their punctuation; Korean is written with spaces."""
    code = ord(cluster[0])
    return 0x2E80 <= code < 0xA960 or 0xF900 <= code < 0xFB00 or 0xFF00 <= code < 0xFF61 or 0x20000 <= code < 0x40000
