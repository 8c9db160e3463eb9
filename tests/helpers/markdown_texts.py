"""Random Markdown for property tests: fragments of every construct, joined and indented at random."""

from hypothesis import strategies as st

LINES = (
    "",
    "",
    "",
    "plain words that go on",
    "some **bold**, *slanted*, ~~gone~~ and `code` text",
    "**open bold and `open code",
    "a [label](https://example.com/x?y=1) and <https://example.org>",
    "![alt](https://example.com/p.png) [ref][1]",
    "[1]: https://example.com",
    "<b>html</b> <!-- comment -->",
    "<div>",
    "&#x202e; &amp; &#27;",
    "# heading",
    "### third ###",
    "#nothing",
    "===",
    "---",
    "***",
    "- item",
    "- [ ] task",
    "+ plus",
    "* star",
    "-",
    "1. one",
    "7. seven",
    "10) ten",
    "2.",
    "> quoted",
    "> - quoted item",
    ">",
    "- > deep",
    "- 1. nested",
    "- ```py",
    "1. ```",
    "```",
    "```python",
    "````js title=x",
    "~~~",
    "def f(x): return 'a'  # why",
    "\tindented by a tab",
    "/* comment",
    "*/",
    "| a | b |",
    "|---|:-:|",
    "| 1 | 2 | 3 |",
    "a | b",
    "--|--",
    "中文的段落，有标点。日本語も「ある」。",
    "emoji 👩‍👩‍👧‍👦 ❤️ 🇩🇪 end",
    "[bold]markup[/bold] [link=https://x.y]z[/link]",
    "trailing  ",
    "back\\",
)

lines = st.builds(
    lambda indent, line: indent + line,
    st.sampled_from(["", "", "", "", "  ", "   ", "    ", "     ", "      ", "\t", "> "]),
    st.sampled_from(LINES) | st.text("ab *_`#>-|[]()!\\<&;:\t~1.", max_size=12),
)
texts = st.builds(lambda parts, end: "\n".join(parts) + end, st.lists(lines, max_size=25), st.sampled_from(["", "\n"]))


def split(text: str, cuts: list[int]) -> list[str]:
    """`text` cut at each of `cuts`, taken modulo its length."""
    places = sorted({cut % (len(text) + 1) for cut in cuts})
    return [text[start:end] for start, end in zip([0, *places], [*places, len(text)], strict=True)]


cuts = st.lists(st.integers(0, 10_000), max_size=12)


CONTROLS = [*range(9), *range(11, 32), *range(127, 160)]

# What drives a terminal, or would if it were not shown as it is.
HOSTILE = [
    *(" x".join(map(chr, CONTROLS[i : i + 8])) for i in range(0, len(CONTROLS), 8)),
    "\x1b]52;c;aGVsbG8=\x07",
    "\x1b]8;;https://example.com\x1b\\label\x1b]8;;\x1b\\",
    "\x1b]0;title\x07",
    "\x1b[2J\x1b[H",
    "\x1b[?1049h",
    "\x1bPq#0\x1b\\",
    "\x9b31m\x9d0;t\x9c",
    "\u202eright to left\u202c",
    "&#27;[31m &#x9b;31m &#x202e;",
    "[bold]bold[/bold] [link=https://example.com]x[/link]",
    "[label](https://example.com/\x1b[31m)",
    "![\x1b[31m](https://example.com)",
    "<https://example.com/\x07>",
    "\ud800",
]
