"""The page in the user's browser."""

import os
import sys
import threading
from urllib.parse import urlsplit

from ..terminal import note


def open_page(address: str) -> threading.Thread:
    """Open a server's page, in a thread that this gives; where there is no browser, a line says so."""
    parts = urlsplit(address)
    if parts.hostname in ("0.0.0.0", "::"):  # all of this machine's addresses: to a browser, none
        address = f"{parts.scheme}://localhost:{parts.port}"
    thread = threading.Thread(target=_open, args=(address,), daemon=True)
    thread.start()
    return thread


def _open(address: str) -> None:
    import webbrowser

    try:
        is_open = _has_windows() and webbrowser.open(address)
    except webbrowser.Error:
        is_open = False
    if not is_open:
        note(f"--open: there is no browser here: open {address}")


def _has_windows() -> bool:
    """Whether a browser would not take the terminal."""
    names = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
    return sys.platform in ("darwin", "win32") or any(os.environ.get(name) for name in names)
