"""The options that keep a prompt's cache: a file of its own, or a folder for all prompts."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..cache import Cache, PrefixStore, default_directory, load_cache, save_cache, shared_prefix
from ..errors import CacheError, InputError
from ..generation import encode_prompt
from ..models import CausalLM
from ..terminal import note
from ..tokenizer import Tokenizer


def disk_directory(directory: str | None, *, wanted: bool | None) -> str | None:
    """Where prefixes are kept on disk, None for nowhere; `wanted`: what --disk-cache or --no-disk-cache said."""
    if directory == "":
        raise InputError("--prompt-cache-dir is empty: expected a folder")
    if wanted is False:
        return None
    return str(default_directory()) if wanted and directory is None else directory


class PromptFile:
    """A prompt and its answer with their cache in a file: made by the first run, continued by all that follow."""

    def __init__(self, path: str, model: CausalLM) -> None:
        self.path, self.model = Path(path).expanduser(), model
        if not self.path.parent.is_dir():
            raise InputError(f"--prompt-cache-file {path}: no folder {self.path.parent}: make it first")
        if not os.access(self.path.parent, os.W_OK):
            raise InputError(f"--prompt-cache-file {path}: {self.path.parent} cannot be written to: choose another")
        self.saved = load_cache(self.path, model) if self.path.exists() else None

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation so far, which the prompt continues."""
        if self.saved is None:
            return []
        if not self.saved.note:
            raise InputError(f"{self.path} holds a plain text, no conversation: add --ignore-chat-template")
        try:
            messages = json.loads(self.saved.note)
            if all(isinstance(message["role"], str) for message in messages):
                return list(messages)
        except (ValueError, TypeError, KeyError):
            pass
        raise CacheError(f"{self.path}: a damaged prompt cache: delete it")

    def followed_by(self, tokenizer: Tokenizer, text: str) -> list[int]:
        """The tokens of a plain text that continues what was saved."""
        if self.saved is None:
            return encode_prompt(tokenizer, text)
        return [*self.saved.tokens, *tokenizer.encode(text, add_special_tokens=False)]

    def begin(self, prompt: Sequence[int], store: PrefixStore | None) -> dict[str, Any]:
        """The options of `stream_generate` that say what is known of a prompt: `cache` and `seen`."""
        self._cache, known = self._recall(prompt, store)
        return {"cache": self._cache, "seen": prompt[:known]}

    def _recall(self, prompt: Sequence[int], store: PrefixStore | None) -> tuple[Cache, int]:
        if self.saved is not None:
            cache = self.saved.cache
            common = shared_prefix(self.saved.tokens, prompt[:-1])
            if cache.offset - common <= cache.rewindable:
                cache.rewind(cache.offset - common)
                return cache, common
            note(f"warning: {self.path}: the prompt begins otherwise than was saved: all of it is read again")
        return store.lookup(prompt) if store and prompt else (self.model.make_cache(), 0)

    def finish(self, tokens: Sequence[int], messages: Sequence[Mapping[str, Any]] | None, answer: str) -> None:
        """Write the file, if it is not there yet.

        tokens: the prompt's and the answer's; messages: None: plain text. answer: all of it, also what the prompt held.
        """
        if self.saved is not None:
            return
        if messages is not None:
            before = messages[:-1] if messages[-1]["role"] == "assistant" else messages
            messages = [*before, {"role": "assistant", "content": answer}]
        told = "" if messages is None else json.dumps(messages, ensure_ascii=False)
        save_cache(self.path, self.model, self._cache, tokens[: self._cache.offset], note=told)
