"""The keywords that mlx-lm's calls have and ours call otherwise: taken where they mean the same, else refused with what
to do instead."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar

from .errors import OptionError

Call = TypeVar("Call", bound=Callable[..., Any])


@dataclass(frozen=True)
class Renamed:
    """It means the same as a keyword of ours; but for a value that is callable, where `not_callable` says why."""

    ours: str
    not_callable: str | None = None


@dataclass(frozen=True)
class Refused:
    """It is not here, and `instead` says what is; a value that asks for nothing (None, False, {}) is taken."""

    instead: str


@dataclass(frozen=True)
class Always:
    """It asks for what is there in any case."""


Keywords = Mapping[str, Renamed | Refused | Always]

REMOTE_CODE = Refused("code from a checkpoint is never run, and none is needed: leave it out")

LOAD: Keywords = {
    "path_or_hf_repo": Renamed("source"),
    "lazy": Refused("weights are read by load, a layer at a time: ours is afmoe_mlx.checkpoint.open_model"),
    "tokenizer_config": Refused("the tokenizer is what its files say: ours for more ends is tokenizer.with_extra_eos"),
    "model_config": Refused("the model is what its config.json says: change it there, in a copy"),
    "trust_remote_code": REMOTE_CODE,
}
CONVERT: Keywords = {
    "hf_path": Renamed("source"),
    "mlx_path": Renamed("destination"),
    "q_bits": Renamed("bits"),
    "q_group_size": Renamed("group_size"),
    "q_mode": Renamed("mode"),
    "quant_predicate": Renamed(
        "recipe", not_callable="a function cannot be kept with the model: ours is a TOML recipe"
    ),
    "trust_remote_code": REMOTE_CODE,
}
GENERATE: Keywords = {
    "prompt_cache": Renamed("cache"),
    "prompt_progress_callback": Renamed("on_progress"),
    "temp": Renamed("temperature"),
    "max_kv_size": Refused("sliding layers are bounded by their window already, and full layers must not forget"),
    "input_embeddings": Refused("ours is model(inputs_embeds=…, cache=cache), then generate(…, cache=cache)"),
    "stream": Refused("ours is to generate within mx.stream(…)"),
    "adapter_path": Refused("an adapter is the model's: ours is load(…, adapter_path=…)"),
}
BATCH_GENERATE: Keywords = {
    **{name: known for name, known in GENERATE.items() if name in ("temp", "max_kv_size", "stream")},
    "completion_batch_size": Renamed("max_rows"),
    "prefill_batch_size": Refused("prompts are read one after the other: leave it out"),
    "stop_tokens": Refused("ours is extra_eos_token, for single tokens, or stop, for texts"),
    "prompt_caches": Refused("ours is store=PrefixStore(model), which knows what prompts have in common"),
    "return_prompt_caches": Refused("ours is store=PrefixStore(model), which keeps what was run"),
    "return_token_ids": Always(),
}


def takes(keywords: Keywords) -> Callable[[Call], Call]:
    """A function that may be called with these keywords of mlx-lm as well; OptionError for those that are not here."""

    def decorated(function: Call) -> Call:
        @wraps(function)
        def call(*args: Any, **given: Any) -> Any:
            if not given.keys().isdisjoint(keywords):
                given = _ours(keywords, given)
            return function(*args, **given)

        return call  # type: ignore[return-value]

    return decorated


def _ours(keywords: Keywords, given: Mapping[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in given.items():
        known = keywords.get(name, Renamed(name))
        if isinstance(known, Always):
            continue
        if isinstance(known, Refused):
            if not (value is None or value is False or (isinstance(value, Mapping) and not value)):
                raise OptionError(f"no option {name} here: {known.instead}")
            continue
        if known.not_callable is not None and callable(value):
            raise OptionError(f"{name}: {known.not_callable}")
        if known.ours in result or (known.ours != name and known.ours in given):
            raise OptionError(f"{name} is {known.ours} here, and both are given: leave one out")
        result[known.ours] = value
    return result
