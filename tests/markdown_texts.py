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
