"""A model's tokenizer on the `tokenizers` library alone, with Transformers' ids, special tokens and chat templates."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import tokenizers

from ..errors import ContextFullError, TokenizerError
from . import encoding, files
from .recommended import with_recommended
from .stream import MAX_TOKEN_ID, TextStream

if TYPE_CHECKING:
    from .guidance import Guidance
    from .template import ChatTemplate


class Tokenizer:
    """Text <-> token ids, as Transformers' fast tokenizer for the same folder gives them.

    `special_tokens` maps names ("bos_token") to texts; `eos_token_ids` are the ids that end a generation;
    `generation_config` is generation_config.json as parsed, {} if absent; where it says nothing of sampling and the
    model is one whose card does, with what the card recommends.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        special_tokens: Mapping[str, str] | None = None,
        eos_token_ids: Iterable[int] = (),
        generation_config: dict[str, Any] | None = None,
        chat_templates: Mapping[str, str] | None = None,
    ) -> None:
        self._backend = backend
        self._templates = dict(chat_templates or {})
        self._compiled: dict[str, ChatTemplate] = {}
        self._guidances: dict[tuple[int, frozenset[int]], Guidance] = {}
        self.special_tokens = dict(special_tokens or {})
        self.generation_config = generation_config or {}
        own_eos = () if self.eos_token_id is None else (self.eos_token_id,)
        self.eos_token_ids = frozenset((*eos_token_ids, *own_eos))

    @classmethod
    def from_folder(cls, folder: str | Path) -> "Tokenizer":
        """Reads tokenizer.json and what stands beside it; TokenizerError names the file that is missing or damaged."""
        folder = Path(folder)
        if not folder.is_dir():
            raise TokenizerError(f"{folder}: not a folder; expected a model's folder with a tokenizer.json")
        config = files.read_json(folder / files.CONFIG_FILE)
        generation_config = files.read_json(folder / "generation_config.json")
        backend = files.read_backend(folder)
        special_tokens = files.read_special_tokens(folder, config, backend)
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = config.get("split_special_tokens") is True
        templates = files.read_templates(folder, config)
        if templates:  # a base model, which has none, is not what cards speak of
            generation_config = with_recommended(generation_config, files.read_json(folder / "config.json"))
        return cls(
            backend,
            special_tokens=special_tokens,
            eos_token_ids=files.read_eos_token_ids(folder, generation_config),
            generation_config=generation_config,
            chat_templates=templates,
        )

    @property
    def vocab_size(self) -> int:
        """How many ids the tokenizer knows, added tokens included; a model's embedding may have more rows."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @property
    def bos_token(self) -> str | None:
        """The token that begins a text."""
        return self.special_tokens.get("bos_token")

    @property
    def bos_token_id(self) -> int | None:
        """The id of `bos_token`."""
        return self._special_id("bos_token")

    @property
    def eos_token(self) -> str | None:
        """The token that ends a text; `eos_token_ids` says at which tokens a generation stops."""
        return self.special_tokens.get("eos_token")

    @property
    def eos_token_id(self) -> int | None:
        """The id of `eos_token`."""
        return self._special_id("eos_token")

    @property
    def pad_token(self) -> str | None:
        """The token that fills a batch's short rows."""
        return self.special_tokens.get("pad_token")

    @property
    def pad_token_id(self) -> int | None:
        """The id of `pad_token`."""
        return self._special_id("pad_token")

    @property
    def unk_token(self) -> str | None:
        """The token that stands for what the vocabulary cannot spell."""
        return self.special_tokens.get("unk_token")

    @property
    def unk_token_id(self) -> int | None:
        """The id of `unk_token`."""
        return self._special_id("unk_token")

    @property
    def chat_template(self) -> str | None:
        """The Jinja source of the usual chat template, or None: then a prompt is used as it is."""
        return self._templates.get("default")

    @property
    def tool_template(self) -> str | None:
        """The Jinja source of the chat template that is used with tools, or None."""
        return self._templates.get("tool_use", self.chat_template)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The token ids of a text; TokenizerError if it cannot be written as UTF-8."""
        try:
            return encoding.encode(self._backend, text, add_special_tokens=add_special_tokens)
        except TypeError as error:
            found = "a lone surrogate (damaged UTF-8)" if isinstance(text, str) else type(text).__name__
            raise TokenizerError(f"cannot encode the prompt: expected text, found {found}") from error

    def check_length(self, text: str, context: int) -> None:
        """ContextFullError for a long text that certainly has more tokens than a context, found by its beginning.

        Of any other, only encoding it tells.
        """
        if encoding.exceeds(self._backend, text, context):
            raise ContextFullError(
                f"the prompt has more tokens than fit: expected fewer than {context}, the model's context"
            )

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = False) -> str:
        """The text of token ids; an id outside the vocabulary prints nothing."""
        known = [token_id for token_id in map(int, ids) if 0 <= token_id <= MAX_TOKEN_ID]
        return self._backend.decode(known, skip_special_tokens=skip_special_tokens)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for, which may be a part of a character."""
        return encoding.token_bytes(self._backend, token_id)

    def token_to_id(self, token: str) -> int | None:
        """The id of one token's text, None if it is no token."""
        try:
            return self._backend.token_to_id(token)
        except UnicodeEncodeError:  # a lone surrogate
            return None

    def stream(self, *, skip_special_tokens: bool = True) -> TextStream:
        """A new stream that turns ids into text one at a time."""
        return TextStream(self._backend, skip_special_tokens=skip_special_tokens)

    def guidance(self, vocab_size: int) -> "Guidance":
        """What constrains answers of a model with so many logits, kept from the first call on, which begins to make it.

        TokenizerError where no token ends an answer.
        """
        from .guidance import Guidance  # threading is imported where something is constrained

        ends = frozenset(token for token in self.eos_token_ids if 0 <= token < vocab_size)
        if not ends:
            raise TokenizerError("a constrained answer needs a token that ends it, and this tokenizer names none")
        if (vocab_size, ends) not in self._guidances:
            self._guidances[vocab_size, ends] = Guidance(self._backend, vocab_size, ends)
        return self._guidances[vocab_size, ends]

    def with_extra_eos(self, tokens: Sequence[str]) -> "Tokenizer":
        """A copy at whose `tokens` a generation stops too: each a token's id in digits, or its text."""
        other = copy.copy(self)
        other.eos_token_ids = self.eos_token_ids | {self._eos_id(token) for token in tokens}
        return other

    def with_chat_template(self, template: str) -> "Tokenizer":
        """A copy whose one chat template is this Jinja source, with tools and without."""
        other = copy.copy(self)
        other._templates, other._compiled = {"default": template}, {}
        return other

    @overload
    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        tokenize: Literal[True] = True,
        **template_kwargs: Any,
    ) -> list[int]: ...

    @overload
    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        tokenize: Literal[False],
        **template_kwargs: Any,
    ) -> str: ...

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        tokenize: bool = True,
        **template_kwargs: Any,
    ) -> list[int] | str:
        """A conversation as token ids, or as text if not `tokenize`.

        `tools` are JSON schemas. `add_generation_prompt` opens the model's turn: for a prompt, not to train with.
        `continue_final_message` leaves the last message open, and so adds no generation prompt; a string names the
        field to leave open instead of "content". `template_kwargs` are further variables of the template.
        TokenizerError if there is no template, or it refuses the conversation.
        """
        text = self._template("default" if tools is None else "tool_use").render(
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt and not continue_final_message,
            continue_final_message=continue_final_message,
            variables={**self.special_tokens, **template_kwargs},
        )
        # A template writes its own special tokens.
        return self.encode(text, add_special_tokens=False) if tokenize else text

    def _template(self, name: str) -> "ChatTemplate":
        from .template import ChatTemplate  # jinja2 is imported when a template is first rendered

        name = name if name in self._templates else "default"
        if name not in self._templates:
            others = f" by default, only {', '.join(sorted(self._templates))}" if self._templates else ""
            raise TokenizerError(f"this tokenizer has no chat template{others}: give it the prompt as text")
        if name not in self._compiled:
            self._compiled[name] = ChatTemplate(self._templates[name])
        return self._compiled[name]

    def _special_id(self, name: str) -> int | None:
        token = self.special_tokens.get(name)
        return None if token is None else self.token_to_id(token)

    def _eos_id(self, token: str) -> int:
        token_id = int(token) if token.isdecimal() and len(token) <= 10 else self.token_to_id(token)
        if token_id is None or token_id > MAX_TOKEN_ID or self._backend.id_to_token(token_id) is None:
            raise TokenizerError(
                f"{token!r} is no token: expected a token's text, or the id of one of {self.vocab_size} tokens"
            )
        return token_id
