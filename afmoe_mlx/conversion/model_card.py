"""The model card (README.md) of a converted model: its origin, formats, quality, and how to run it."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from ..checkpoint.files import StoredTensor, find_weights, read_config_json, read_headers
from ..checkpoint.quantized import parameters, read_quantization
from ..checkpoint.shards import CARD
from ..errors import HubError

# What of the source's card holds for the conversion as well.
CARRIED = ("license", "license_name", "license_link", "language", "pipeline_tag")

# An evaluation's figures, by their names in its JSON: what they are called here, and how they are written.
QUALITY = {
    "perplexity": ("Perplexity", "{:.4f}"),
    "reference_perplexity": ("Perplexity of the source", "{:.4f}"),
    "kl_mean": ("KL divergence from the source, mean (nats)", "{:.5f}"),
    "kl_median": ("KL divergence, median", "{:.5f}"),
    "kl_p99": ("KL divergence, 99th percentile", "{:.5f}"),
    "top1_agreement": ("Same likeliest token as the source", "{:.2%}"),
    "expert_overlap": ("Same experts chosen as by the source", "{:.2%}"),
}

USAGE = """## Use

With afmoe-mlx:
```bash
afmoe-mlx chat --model {repo}
```
With [mlx-lm](https://github.com/ml-explore/mlx-lm):
```bash
mlx_lm.generate --model {repo} --prompt "Hello"
```"""


def write_model_card(
    folder: Path,
    repo: str,
    *,
    source: str | None,
    commit: str | None = None,
    inherited: Mapping[str, Any] | None = None,
    recipe: str | None = None,
    calibration: str | None = None,
    adapters: Sequence[str] = (),
    quality: Mapping[str, Any] | None = None,
) -> None:
    """Write README.md into the folder of a converted model, the same bytes for the same model and arguments.

    repo: what it will be called on the Hub. source, commit: of the repository it was made from, None if from none.
    inherited: the metadata of the source's card. recipe: its name or file. calibration: how it was done, in words.
    adapters: what those are called that were merged. quality: an evaluation's JSON. Raises CheckpointError and
    ConfigError for a folder that is no model's.
    """
    raw = read_config_json(folder)
    headers = read_headers(find_weights(folder))
    formats = formats_of(headers, read_quantization(raw) or {})
    rows = {
        "Weights": _in_words(headers, formats),
        "Recipe": f"`{Path(recipe).name}`" if recipe else None,
        "Calibration": calibration,
        "Adapter": ", ".join(f"`{name}`" for name in adapters) or None,
    }
    rows["Bits per weight"] = f"{bits_per_weight(headers, formats):.2f}"
    rows["Size"] = f"{sum(tensor.nbytes for tensor in headers.values()) / 1e9:.2f} GB"
    rows["Source revision"] = f"`{commit}`" if commit else None
    relation = "finetune" if adapters else "quantized" if formats else None
    metadata = _metadata(raw, source, relation, inherited or {})
    made_of = f"[{source}](https://huggingface.co/{source})" if source else "A local checkpoint"
    parts = [
        f"---\n{_yaml(metadata)}---",
        f"# {repo.rpartition('/')[2]}",
        f"{made_of}{' with an adapter merged' if adapters else ''}, converted to MLX files.",
        _table(("", ""), {key: value for key, value in rows.items() if value}),
        *([_quality(quality)] if quality else []),
        USAGE.format(repo=repo),
    ]
    beside = folder / f".{CARD}"
    beside.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    beside.replace(folder / CARD)


def formats_of(names: Iterable[str], quantization: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """group_size, bits and mode of every quantized module, by its path; names: of all tensors, our own."""
    paths = [name.removesuffix(".scales") for name in names if name.endswith(".scales")]
    own = {path: quantization.get(path) for path in paths}
    return {path: parameters(value if isinstance(value, Mapping) else quantization) for path, value in own.items()}


def bits_per_weight(headers: Mapping[str, StoredTensor], formats: Mapping[str, Mapping[str, Any]]) -> float:
    """Bits of all tensors stored, for each weight that the model has unquantized."""
    weights = 0
    for name, tensor in headers.items():
        path, _, kind = name.rpartition(".")
        if path not in formats or kind == "bias":
            weights += prod(tensor.shape)
        elif kind == "scales":
            weights += prod(tensor.shape) * formats[path]["group_size"]
    return 8 * sum(tensor.nbytes for tensor in headers.values()) / max(weights, 1)


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata at the head of a card; empty if there is no card, or none that can be read."""
    from huggingface_hub import metadata_load

    try:
        return metadata_load(path) or {}
    except Exception:  # a stranger's YAML: not worth a conversion
        return {}


def _in_words(headers: Mapping[str, StoredTensor], formats: Mapping[str, Mapping[str, Any]]) -> str:
    """The formats that quantized weights have, with the share of each, the commonest first."""
    counts: Counter[str] = Counter()
    for path, chosen in formats.items():
        counts[_format_in_words(chosen)] += prod(headers[f"{path}.scales"].shape) * chosen["group_size"]
    ordered = sorted(counts, key=lambda words: (-counts[words], words))
    if len(ordered) < 2:
        return ordered[0] if ordered else "not quantized"
    return "; ".join(f"{words} ({counts[words] / counts.total():.0%})" for words in ordered)


def _format_in_words(chosen: Mapping[str, Any]) -> str:
    if chosen["mode"] != "affine":
        return f"{chosen['mode']}"
    return f"{chosen['bits']} bits in groups of {chosen['group_size']}"


def _metadata(
    raw: Mapping[str, Any], source: str | None, relation: str | None, inherited: Mapping[str, Any]
) -> dict[str, Any]:
    """The card's metadata in the Hub's terms."""
    carried = {key: value for key in CARRIED if (value := inherited.get(key)) and _is_plain(value)}
    tags: Any = value if _is_plain(value := inherited.get("tags")) else []
    own = ["mlx", "afmoe-mlx", str(raw["model_type"])]
    metadata: dict[str, Any] = {"library_name": "mlx", "pipeline_tag": "text-generation"} | carried
    metadata["tags"] = list(dict.fromkeys([*own, *([tags] if isinstance(tags, str) else tags)]))
    if source:
        metadata["base_model"] = source
        if relation:
            metadata["base_model_relation"] = relation
    return dict(sorted(metadata.items()))


def _is_plain(value: Any) -> bool:
    """Whether a metadata value is a text, or a list of texts, each on one line."""
    return all(isinstance(item, str) and item.isprintable() for item in (value if isinstance(value, list) else [value]))


def _yaml(metadata: Mapping[str, Any]) -> str:
    from huggingface_hub.utils import yaml_dump

    return str(yaml_dump(dict(metadata), sort_keys=False))


def _table(head: tuple[str, str], rows: Mapping[str, str | None]) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|", *(f"| {key} | {_cell(value)} |" for key, value in rows.items())]
    return "\n".join(lines)


def _cell(value: str | None) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def _quality(quality: Mapping[str, Any]) -> str:
    """The table of an evaluation; HubError if it holds no figure of one."""
    figures = {key: value for key in QUALITY if isinstance(value := quality.get(key), int | float)}
    if not figures:
        raise HubError(f"the evaluation has none of {', '.join(QUALITY)}: expected what `afmoe-mlx eval --json` prints")
    rows: dict[str, str | None] = {QUALITY[key][0]: QUALITY[key][1].format(value) for key, value in figures.items()}
    return "## Quality\n\n" + _table(("Measure", "Value"), rows)
