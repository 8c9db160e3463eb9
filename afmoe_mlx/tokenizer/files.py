"""The tokenizer files of a model's folder, read as Transformers 5 reads them.

`add_bos_token` and `add_eos_token` are not read: beside a tokenizer.json, Transformers 5 ignores them too.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from ..errors import TokenizerError

NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
CONFIG_FILE = "tokenizer_config.json"


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file, {} if there is no such file; TokenizerError if it holds anything else."""
    text = _read_text(path)
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path}: not valid JSON ({error}); fetch the file again") from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def read_backend(folder: Path) -> tokenizers.Tokenizer:
    """The tokenizer in tokenizer.json, never truncating or padding."""
    path = folder / "tokenizer.json"
    text = _read_text(path)
    if text is None:
        raise TokenizerError(
            f"{path}: no such file; fetch it with the model, or make it with Transformers: "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    try:
        backend = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the binding raises nothing narrower
        reason = " ".join(str(error).split())
        raise TokenizerError(
            f"{path}: not a tokenizer that tokenizers {tokenizers.__version__} can read ({reason}); "
            "fetch the file again, or update the tokenizers package"
        ) from error
    return backend


def read_special_tokens(folder: Path, config: dict[str, Any], backend: tokenizers.Tokenizer) -> dict[str, str]:
    """The special tokens by name ("bos_token": "<s>"); those that the backend does not know are added to it."""
    path, legacy_path = folder / CONFIG_FILE, folder / "special_tokens_map.json"
    # A config that lists its added tokens is newer than special_tokens_map.json, and complete.
    legacy = {} if "added_tokens_decoder" in config else read_json(legacy_path)
    named, extra = _special_tokens(config, path)
    legacy_named, legacy_extra = _special_tokens(legacy, legacy_path)
    named, extra = {**named, **legacy_named}, [*extra, *legacy_extra]
    if backend.padding and "pad_token" not in {**config, **legacy}:
        named["pad_token"] = AddedToken(backend.padding["pad_token"], special=True)
    named = {name: named[name] for name in (*NAMES, *named) if name in named}  # new tokens get their ids in this order
    declared = _declared_tokens(config, backend, path)
    known = {token.content for token in (*declared, *backend.get_added_tokens_decoder().values())}
    names = {token.content for token in named.values()}
    for token in (*named.values(), *extra):
        if token.content not in known:
            known.add(token.content)
            declared.append(token)
    for token in declared:
        token.special = token.special or token.content in names
    # Adding a token again renews its flags and keeps its id.
    backend.add_tokens(declared)
    return {name: token.content for name, token in named.items()}


def read_templates(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """The chat templates by name; the usual one is "default". Files of their own win over tokenizer_config.json."""
    default = _read_text(folder / "chat_template.jinja")
    templates = {} if default is None else {"default": default}
    for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        templates[path.stem] = _read_text(path) or ""
    if templates:
        return templates
    path = folder / "chat_template.json"
    template = read_json(path).get("chat_template")
    if template is None:
        path, template = folder / CONFIG_FILE, config.get("chat_template")
    return _named_templates(template, path)


def read_eos_token_ids(folder: Path, generation_config: dict[str, Any]) -> frozenset[int]:
    """The ids that end a generation: generation_config.json's, else config.json's, else none."""
    path, value = folder / "generation_config.json", generation_config.get("eos_token_id")
    if value is None:
        path = folder / "config.json"
        value = read_json(path).get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(token_id) is int for token_id in ids):
        raise TokenizerError(f"{path}: expected eos_token_id as an integer or a list of integers, found {value!r}")
    return frozenset(ids)


def _read_text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path}: not UTF-8 text ({error.reason}); fetch the file again") from error
    except OSError as error:
        raise TokenizerError(f"{path}: cannot be read ({error.strerror})") from error


def _named_templates(value: Any, path: Path) -> dict[str, str]:
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": value}
    if isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
        value = {entry.get("name"): entry.get("template") for entry in value}
    if not isinstance(value, dict) or not all(isinstance(text, str) for pair in value.items() for text in pair):
        raise TokenizerError(f"{path}: expected chat_template as a string or a list of {{name, template}}")
    return value


def _special_tokens(config: dict[str, Any], path: Path) -> tuple[dict[str, AddedToken], list[AddedToken]]:
    """Tokens with a name, and those without. A string under any key "..._token" is a name of the model's own."""
    own_named, extra = _extra_tokens(config, path)
    named = {name: _added_token(config[name], name, path) for name in NAMES if config.get(name) is not None}
    for name, value in config.items():
        if name.endswith("_token") and name not in NAMES and isinstance(value, str | dict):
            named[name] = _added_token(value, name, path)
    return {**named, **own_named}, extra


def _extra_tokens(config: dict[str, Any], path: Path) -> tuple[dict[str, AddedToken], list[AddedToken]]:
    key = "extra_special_tokens"
    extra = config.get(key) or config.get("additional_special_tokens") or []  # the name until Transformers 4
    own = config.get("model_specific_special_tokens") or {}
    if not isinstance(extra, list | dict) or not isinstance(own, dict):
        raise TokenizerError(f"{path}: expected {key} as a list or an object, and model_specific_special_tokens as one")
    own = {**extra, **own} if isinstance(extra, dict) else own
    named = {name: _added_token(value, name, path) for name, value in own.items()}
    return named, [_added_token(value, key, path) for value in extra] if isinstance(extra, list) else []


def _declared_tokens(config: dict[str, Any], backend: tokenizers.Tokenizer, path: Path) -> list[AddedToken]:
    key = "added_tokens_decoder"
    declared = config.get(key, {})
    if not isinstance(declared, dict) or not all(token_id.isdecimal() and len(token_id) <= 10 for token_id in declared):
        raise TokenizerError(f"{path}: expected {key} as an object from ids to tokens")
    if key not in config:
        return _by_id(backend.get_added_tokens_decoder().items())
    tokens = {int(token_id): _added_token(value, key, path, special=False) for token_id, value in declared.items()}
    return _by_id(tokens.items())


def _by_id(tokens: Iterable[tuple[int, AddedToken]]) -> list[AddedToken]:
    return [token for _, token in sorted(tokens, key=lambda item: item[0])]


def _added_token(value: Any, key: str, path: Path, *, special: bool = True) -> AddedToken:
    token = value if isinstance(value, dict) else {"content": value, "special": True}
    flags = {name: token[name] for name in FLAGS if isinstance(token.get(name), bool)}
    try:
        return AddedToken(token["content"], **{"special": special, **flags})
    except (KeyError, TypeError, UnicodeEncodeError) as error:
        raise TokenizerError(f"{path}: expected {key} as text or an object with content, found {value!r}") from error
