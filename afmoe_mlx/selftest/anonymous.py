"""Texts of errors for a report that anyone may read."""

import os
import re

# The folders of a path; what follows is a file's name.
_FOLDERS = re.compile(r"(?<![\w/])~?/(?:[^\s/'\"]+/)+")


def in_one_line(text: str) -> str:
    """An error's text in one line, with no more of a path than the file's name."""
    home = os.path.expanduser("~")
    text = text.replace(home + os.sep, "~/") if len(home) > 1 else text
    return _FOLDERS.sub("", " ".join(text.split()))
