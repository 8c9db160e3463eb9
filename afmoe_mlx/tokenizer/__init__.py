"""Text <-> token ids: the `tokenizers` library, chat templates, streaming of an answer's text."""

from .stream import TextStream
from .tokenizer import Tokenizer

__all__ = ["TextStream", "Tokenizer"]
