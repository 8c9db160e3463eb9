"""The chat in a browser: its files, that run there, and how they are handed out."""
