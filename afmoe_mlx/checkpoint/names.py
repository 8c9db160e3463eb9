"""The short names of published models."""

import difflib
import re
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path

from ..errors import CheckpointError

NUMBER = re.compile(r"\d+")
GGUF = ".gguf"  # llama.cpp's files


@dataclass(frozen=True, slots=True)
class ModelName:
    """One row of the table: `repo` is what runs, `source` what was published and is converted from.

    `parameters` counts weights, `download_bytes` estimates the safetensors of `repo`; both are None where only the
    model's own config tells.
    """

    name: str
    repo: str
    source: str
    description: str
    parameters: int | None
    download_bytes: int | None
    note: str = ""


# Parameters follow from each config. A 4-bit download holds affine quantization in groups of 64: 4.5 bits for a weight
# of a projection or embedding, and 16 for norms, routers and convolutions; derived in tests/checkpoint/test_names.py.
MODEL_NAMES = (
    ModelName(
        "trinity-nano",
        "mlx-community/Trinity-Nano-Preview-4bit",
        "arcee-ai/Trinity-Nano-Preview",
        "6B, 1B active",
        6_120_003_328,
        3_453_038_080,
    ),
    ModelName(
        "trinity-mini",
        "mlx-community/Trinity-Mini-4bit",
        "arcee-ai/Trinity-Mini",
        "26B, 3B active",
        26_123_974_400,
        14_706_437_632,
    ),
    ModelName(
        "trinity-large",
        "arcee-ai/Trinity-Large-Preview",
        "arcee-ai/Trinity-Large-Preview",
        "400B, 13B active",
        398_635_286_016,
        797_270_572_032,
        note="bfloat16 as published: convert it before use (4 bits: 224 GB)",
    ),
    ModelName(
        "trinity-large-thinking",
        "arcee-ai/Trinity-Large-Thinking",
        "arcee-ai/Trinity-Large-Thinking",
        "400B, 13B active",
        398_635_286_016,
        797_270_572_032,
        note="bfloat16 as published: convert it before use (4 bits: 224 GB)",
    ),
    ModelName(
        "lfm2-8b-a1b",
        "mlx-community/LFM2-8B-A1B-4bit",
        "LiquidAI/LFM2-8B-A1B",
        "8B, 1.5B active",
        8_339_930_560,
        4_693_588_864,
    ),
    ModelName(
        "lfm2-24b-a2b",
        "LiquidAI/LFM2-24B-A2B-MLX-4bit",
        "LiquidAI/LFM2-24B-A2B",
        "24B, 2.3B active",
        23_843_661_440,
        13_419_728_128,
    ),
    ModelName(
        "lfm2.5-8b-a1b",
        "LiquidAI/LFM2.5-8B-A1B-MLX-4bit",
        "LiquidAI/LFM2.5-8B-A1B",
        "8B, 1.5B active",
        8_467_856_832,
        4_765_547_392,
    ),
    ModelName(
        "lfm2.5-24b-a2b",
        "LiquidAI/LFM2.5-24B-A2B-MLX-bf16",
        "LiquidAI/LFM2.5-24B-A2B",
        "24B, 2.45B active",
        None,
        None,
        note="bfloat16 as published: convert it before use",
    ),
)


def find(name: str) -> ModelName | None:
    """The row of a short name, in any case, or None."""
    wanted = name.casefold()
    return next((row for row in MODEL_NAMES if row.name == wanted), None)


def caution(name: str) -> str:
    """What a user of a short name may not expect of its download; "" for nothing."""
    row = find(name)
    if row is None or not row.note:
        return ""
    download = f" ({row.download_bytes / 1e9:.0f} GB to download)" if row.download_bytes else ""
    return f"{row.name}{download}: {row.note}"


def instead(name: "str | PathLike[str]") -> str:
    """What to take in place of a model whose files are not read; name: of its folder or repository.

    A base model is not the one that was tuned from it.
    """
    text = fspath(name).casefold().replace("_", "-")
    found = [row for row in MODEL_NAMES if re.search(rf"{re.escape(_published_name(row))}(?!-(true)?base)\b", text)]
    if not found:
        return "take a conversion to MLX of the same model, or convert its unquantized weights"
    row = max(found, key=lambda row: len(_published_name(row)))
    return f"take {row.name} ({row.repo})" + (f", or convert {row.source}" if row.repo != row.source else "")


def _published_name(row: ModelName) -> str:
    return row.source.rpartition("/")[2].casefold()


def published(source: str | Path) -> str | Path:
    """What a short name was published as, which conversions start from and are compared with; else `source` itself."""
    row = find(source) if isinstance(source, str) and not Path(source).exists() else None
    return row.source if row else source


def runs(source: str) -> str:
    """The repository that a short name runs, which an adapter was trained on; else `source` itself."""
    row = None if Path(source).exists() else find(source)
    return row.repo if row else source


def suggest(word: str) -> str | None:
    """The short name that `word` begins alone or misspells; None if there is none, or another model may be meant."""
    word = word.casefold()
    begun = [row.name for row in MODEL_NAMES if row.name.startswith(word)]
    if len(begun) == 1:
        return begun[0]
    # sizes and versions are no misspellings
    alike = [row.name for row in MODEL_NAMES if NUMBER.findall(row.name) == NUMBER.findall(word)]
    matches = difflib.get_close_matches(word, alike, n=1, cutoff=0.85)
    return matches[0] if matches else None


def repo_id(text: str) -> str:
    """The Hub repository behind a short name, or `owner/name` itself; CheckpointError for any other word."""
    if row := find(text):
        return row.repo
    if "/" in text:
        return text
    near = suggest(text)
    hint = f"did you mean {near}? " if near else ""
    known = ", ".join(row.name for row in MODEL_NAMES)
    raise CheckpointError(f"no model called {text!r}: {hint}give a folder, owner/name on the Hub, or one of {known}")
