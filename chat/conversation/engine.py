"""`Engine`: a loaded model with tokenizer, options and prefix cache; `EngineSource` loads another for /model."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from afmoe_mlx.api import load
from afmoe_mlx.cache import PrefixStore
from afmoe_mlx.checkpoint.names import caution
from afmoe_mlx.command_line.draft import with_draft_model
from afmoe_mlx.command_line.experts import tell_experts
from afmoe_mlx.command_line.generation_config import tell_unused_keys
from afmoe_mlx.command_line.hosts import tell_hosts
from afmoe_mlx.command_line.kv_bits import KVOptions, tell_kv_bits
from afmoe_mlx.command_line.self_test import suggest_self_test
from afmoe_mlx.errors import TokenizerError
from afmoe_mlx.footprint import ExpertsInMemory
from afmoe_mlx.models import CausalLM
from afmoe_mlx.terminal import note
from afmoe_mlx.tokenizer import Tokenizer

# Options that belong to one model: its draft model, and what names its tokens.
OF_A_MODEL = ("draft_model", "logit_bias")


def for_another_model(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that mean the same for another model."""
    return {key: value for key, value in options.items() if key not in OF_A_MODEL}


def lasting_name(name: str) -> str:
    """A model's name that means the same in another folder."""
    folder = os.path.expanduser(name)
    return os.path.abspath(folder) if name != "demo" and os.path.isdir(folder) else name


@dataclass(frozen=True)
class Engine:
    """A model by its name, its tokenizer, the options of its answers, and what it has computed."""

    name: str
    model: CausalLM
    tokenizer: Tokenizer
    options: Mapping[str, Any]
    store: PrefixStore | None


@dataclass(frozen=True, kw_only=True)
class EngineSource:
    """How models are loaded in one run of the chat; see `load` for experts_in_memory, context and force."""

    name: str
    """Of the first model."""
    revision: str | None = None
    """Of the first model."""
    draft_model: str | None = None
    """Of the first model."""
    chat_template: str | None = None
    """Of the first model, in place of its own."""
    kv: KVOptions
    experts_in_memory: ExpertsInMemory = None
    on_hosts: Mapping[str, Any] = field(default_factory=dict)
    """hosts, silence, on_lost."""
    adapters: Mapping[str, Any] = field(default_factory=dict)
    """adapter_path and adapter_scale, of the first model."""
    context: int | None = None
    force: bool = False
    directory: str | None = None
    """Where what is computed is kept on disk; None for memory alone."""
    keeps: bool = True
    """Whether it is kept in memory, for more than one answer."""

    def first(self, options: Mapping[str, Any]) -> Engine:
        """The model that the chat begins with; TokenizerError if it cannot chat, else the errors of `load`."""
        return self._engine(self.name, options, self.revision, self.draft_model, self.chat_template, self.adapters)

    def adapted(self, name: str, options: Mapping[str, Any], adapters: Sequence[str]) -> Engine:
        """The model in use with other adapters, and all options as they are; errors as of `first`."""
        revision, template = (self.revision, self.chat_template) if name == self.name else (None, None)
        return self._engine(name, options, revision, chat_template=template, adapters={"adapter_path": adapters})

    def another(self, name: str, options: Mapping[str, Any]) -> Engine:
        """A model to go on with, with the same options but those of the other's tokens; errors as of `first`."""
        if words := caution(name):
            note(words, dim=True)
        return self._engine(name, for_another_model(options))

    def _engine(
        self,
        name: str,
        options: Mapping[str, Any],
        revision: str | None = None,
        draft_model: str | None = None,
        chat_template: str | None = None,
        adapters: Mapping[str, Any] | None = None,
    ) -> Engine:
        model, tokenizer = load(
            name,
            revision=revision,
            context=self.context,
            kv_quantization=self.kv.quantization,
            experts_in_memory=self.experts_in_memory,
            **(adapters or {}),
            **self.on_hosts,
            force=self.force,
        )
        if chat_template is not None:
            tokenizer = tokenizer.with_chat_template(chat_template)
        if tokenizer.chat_template is None:
            raise TokenizerError(f"{name} has no chat template, so it cannot chat: use `afmoe-mlx generate`")
        tell_kv_bits(model)
        tell_experts(model)
        tell_hosts(model)
        tell_unused_keys(tokenizer)
        suggest_self_test(name)
        options = with_draft_model(options, draft_model, tokenizer, force=self.force)
        store = PrefixStore(model, directory=self.directory) if self.keeps or self.directory else None
        return Engine(name, model, tokenizer, options, store)
