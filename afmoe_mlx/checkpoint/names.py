"""The short names of published models."""

import difflib
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError


@dataclass(frozen=True, slots=True)
class ModelName:
    """One row of the table: `repo` is what runs, `source` what was published and is converted from.

    `parameters` counts weights, `download_bytes` estimates the safetensors of `repo`.
    """

    name: str
    repo: str
    source: str
    description: str
    parameters: int
    download_bytes: int
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
        "lfm2-8b-a1b",
        "mlx-community/LFM2-8B-A1B-4bit",
        "LiquidAI/LFM2-8B-A1B",
        "8B, 1.5B active",
        8_339_930_560,
        4_693_588_864,
    ),
)


def find(name: str) -> ModelName | None:
    """The row of a short name, in any case, or None."""
    wanted = name.casefold()
    return next((row for row in MODEL_NAMES if row.name == wanted), None)


def caution(name: str) -> str:
    """What a user of a short name may not expect of its download; "" for nothing."""
    row = find(name)
    return f"{row.name} ({row.download_bytes / 1e9:.0f} GB to download): {row.note}" if row and row.note else ""


def published(source: str | Path) -> str | Path:
    """What a short name was published as, which conversions start from and are compared with; else `source` itself."""
    row = find(source) if isinstance(source, str) and not Path(source).exists() else None
    return row.source if row else source


def suggest(word: str) -> str | None:
    """The short name that `word` most resembles, or None when none is near."""
    matches = difflib.get_close_matches(word.casefold(), [row.name for row in MODEL_NAMES], n=1, cutoff=0.5)
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
