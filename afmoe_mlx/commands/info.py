"""`afmoe-mlx info`: a model's size, memory and speed on this machine and on Macs, from config and headers alone."""

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from .. import device
from ..api import DEMO, counting
from ..cache import KVQuantization
from ..checkpoint.files import read_config_json, stored_dtype
from ..checkpoint.foreign import translate
from ..checkpoint.hub import resolve_headers
from ..checkpoint.quantized import parameters, read_quantization
from ..command_line.requests.machine import InfoRequest
from ..command_line.shared_out import on_hosts
from ..errors import InputError
from ..footprint import (
    MACS,
    SSD_SPEEDS,
    TYPICAL_SSD,
    ExpertMemory,
    Footprint,
    count_parameters,
    own_bandwidth,
    with_experts,
)
from ..generation import SamplingOptions
from ..models import AfmoeConfig, ModelConfig, read_config
from ..terminal import printable, size, write, write_json
from ..tokenizer import files
from ..values import listed

DEFAULT_CONTEXT = 32_768

KINDS = {"full_attention": "full", "sliding_attention": "sliding", "conv": "convolution"}


@dataclass(frozen=True)
class Machine:
    """Where a model may run; bytes, and bytes a second."""

    name: str
    memory: int | None
    usable: int | None
    """By a model; None where it is unknown."""
    bandwidth: float
    is_measured: bool
    ssd: float
    footprint: Footprint

    @property
    def fits(self) -> bool | None:
        return None if self.usable is None else self.footprint.needed <= self.usable

    @property
    def speed(self) -> float:
        return self.footprint.streamed_tokens_per_second(self.bandwidth, self.ssd)


def run(request: InfoRequest) -> None:
    """Print what a model is and needs, with a cache of `context` tokens, its keys in `kv_bits` bits.

    The JSON's own sizes are those on a GPU, which computes in the dtype that is stored; a machine has its own.
    """
    source = request.model
    kept = None if request.kv_bits is None else KVQuantization(request.kv_bits)
    folder, headers = resolve_headers(DEMO if source == "demo" else source, revision=request.revision)
    raw, found = translate(read_config_json(folder), headers)
    config = read_config(raw)
    tokens = _context(config, request.context)
    given: dict[str, Any] = {"context": tokens, "adapters": counting(request.adapter_path)}
    stored = Footprint.of_checkpoint(config, found, **given, dtype=stored_dtype(found)).with_kv(config, kept)
    here = _this_machine(Footprint.of_checkpoint(config, found, **given).with_kv(config, kept))
    macs = [Machine(mac.chip, mac.memory, mac.usable, mac.bandwidth, False, mac.ssd, stored) for mac in MACS]
    wanted = None if request.hosts else request.experts_in_memory  # each host's, with several
    if wanted is not None:
        experts, own = (
            ExpertMemory.of_checkpoint(config, found, dtype) for dtype in (stored.dtype, here.footprint.dtype)
        )
        macs = [replace(mac, footprint=with_experts(stored, experts, wanted, mac.usable)) for mac in macs]
        stored = with_experts(stored, experts, wanted, here.usable)
        here = replace(here, footprint=with_experts(here.footprint, own, wanted, here.usable))
    model = _describe(source, raw, config, stored) | _conversation(folder)
    shared = None if request.hosts is None else on_hosts(request, kept, tokens)
    if request.as_json:
        sizes = _sizes(stored)
        machines = {"this_machine": _machine_json(here), "macs": [_machine_json(mac) for mac in macs]}
        hosts = {} if shared is None else {"hosts": shared.as_json()}
        write_json(model | sizes | _experts_json(here) | machines | hosts, indent=2)
        return
    parts = [_model_lines(model, config), _size_lines(stored, here.footprint), _machine_lines(here, macs)]
    if wanted is not None:
        parts.insert(2, _expert_lines(here))
    if shared is not None:
        parts[-1] = shared.lines()
    write("\n\n".join("\n".join(lines) for lines in parts) + "\n")


def _context(config: ModelConfig, asked: int | None) -> int:
    longest = config.max_position_embeddings
    if asked is not None and asked > longest:
        raise InputError(f"--context is {asked}: expected at most {longest}, the model's context")
    return asked or min(DEFAULT_CONTEXT, longest)


def _this_machine(footprint: Footprint) -> Machine:
    memory, (bandwidth, is_measured) = device.memory(), own_bandwidth()
    return Machine(device.device_name(), memory.total, memory.usable, bandwidth, is_measured, TYPICAL_SSD, footprint)


def _experts_json(here: Machine) -> dict[str, Any]:
    """Which experts are in memory here, and what is to be expected of the others; nothing where all are."""
    experts = here.footprint.experts
    if experts is None or experts.placement is None:
        return {}
    speeds = {ssd: here.footprint.streamed_tokens_per_second(here.bandwidth, ssd) for ssd in SSD_SPEEDS}
    return {
        "experts_in_memory": {
            "bytes": experts.resident,
            "share": experts.resident / experts.total,
            "slots": experts.placement.slots,
            "whole_layers": experts.placement.whole_layers,
            "reading_layers": len(experts.held) - experts.placement.whole_layers,
            "expected_hit_rate": experts.hit_rate,
            "expected_bytes_per_token": experts.read_per_token,
            "bytes_per_prompt": experts.read_per_prompt,
            "expected_tps": [{"ssd_bytes_per_second": ssd, "tps": speed} for ssd, speed in speeds.items()],
        }
    }


def _expert_lines(here: Machine) -> list[str]:
    found = _experts_json(here).get("experts_in_memory")
    if found is None or here.footprint.experts is None:
        return ["Experts in memory           all of them: they fit"]
    number, layers = here.footprint.experts.num_experts, found["reading_layers"]
    whole = f", all in the {found['whole_layers']} others" if found["whole_layers"] else ""
    speeds = ", ".join(
        f"{_rounded(each['tps'])} at {each['ssd_bytes_per_second'] / 1e9:g} GB/s" for each in found["expected_tps"]
    )
    return [
        f"Experts in memory           {size(found['bytes'])}, {found['share']:.0%} of all",
        f"Slots                       {found['slots']} of {number} in {layers} layers{whole}",
        f"Read from the SSD           {size(found['expected_bytes_per_token'])} a token,"
        f" if {found['expected_hit_rate']:.0%} are found in memory; {size(found['bytes_per_prompt'])} a prompt",
        f"Tokens/s to expect          {speeds} from the SSD",
    ]


def _describe(source: str, raw: dict[str, Any], config: ModelConfig, stored: Footprint) -> dict[str, Any]:
    quantization = read_quantization(raw)
    return {
        "model": source,
        "model_type": raw["model_type"],
        "layers": {kind: caches.layers for kind, caches in stored.caches.items()},
        "experts": config.num_experts,
        "experts_per_token": config.num_experts_per_tok,
        "parameters": asdict(count_parameters(config)),
        "quantization": None if quantization is None else parameters(quantization),
        "dtype": _dtype_name(stored),
        "max_context": config.max_position_embeddings,
        "context": stored.context,
        "kv_bits": stored.kv_quantization and stored.kv_quantization.bits,
        "disk_bytes": stored.weights.stored,
    }


def _conversation(folder: Path) -> dict[str, Any]:
    """The variables that the chat template can be told, None without one, and the sampling that the model asks for."""
    template = files.read_templates(folder, files.read_json(folder / files.CONFIG_FILE)).get("default")
    variables = None
    if template is not None:
        from ..tokenizer.template import ChatTemplate

        variables = sorted(ChatTemplate(template).variables)
    options = SamplingOptions.from_generation_config(files.read_json(folder / "generation_config.json"))
    chosen = {field.name: getattr(options, field.name) for field in fields(options)}
    sampling = {field.name: chosen[field.name] for field in fields(options) if chosen[field.name] != field.default}
    return {"chat_template": None if variables is None else {"variables": variables}, "sampling": sampling}


def _sizes(footprint: Footprint) -> dict[str, Any]:
    return {
        "weight_bytes": footprint.weights.held,
        "adapter_bytes": footprint.adapters[0],
        "cache_bytes": {kind: caches.held for kind, caches in footprint.caches.items()},
        "workspace_bytes": footprint.workspace,
        "optional_workspace_bytes": footprint.optional_workspace,
        "needed_bytes": footprint.needed,
        "bytes_per_token": footprint.bytes_per_token,
    }


def _machine_json(machine: Machine) -> dict[str, Any]:
    return {
        "name": machine.name,
        "memory_bytes": machine.memory,
        "usable_bytes": machine.usable,
        "bandwidth_bytes_per_second": machine.bandwidth,
        "bandwidth_is_measured": machine.is_measured,
        "dtype": _dtype_name(machine.footprint),
        "needed_bytes": machine.footprint.needed,
        "bytes_per_token": machine.footprint.bytes_per_token,
        "fits": machine.fits,
        "max_tokens_per_second": machine.speed,
    }


def _dtype_name(footprint: Footprint) -> str:
    return str(footprint.dtype).removeprefix("mlx.core.")


def _model_lines(model: dict[str, Any], config: ModelConfig) -> list[str]:
    layers = ", ".join(f"{count} {KINDS[kind]}" for kind, count in model["layers"].items())
    shared = ""
    if isinstance(config, AfmoeConfig):
        layers = layers.replace("sliding", f"sliding (window {config.sliding_window:,})")
        shared = f", {config.num_shared_experts} shared"
    total, active = (_short(model["parameters"][key]) for key in ("total", "active"))
    quantization = model["quantization"]
    bits = f"{quantization['bits']} bits ({quantization['mode']})" if quantization else model["dtype"]
    template = "none: prompts are used as they are, and it cannot chat"
    if model["chat_template"] is not None:
        variables = model["chat_template"]["variables"]
        template = f"knows {listed(variables)}" if variables else "yes"
    sampling = ", ".join(f"{name} {value}" for name, value in model["sampling"].items())
    return [
        f"Model         {printable(model['model'])} ({model['model_type']})",
        f"Layers        {config.num_hidden_layers}: {layers}",
        f"Experts       {config.num_experts} a layer, {config.num_experts_per_tok} chosen for a token{shared}",
        f"Parameters    {total}, {active} active for a token",
        f"On disk       {size(model['disk_bytes'])}, {bits}",
        f"Context       {model['context']:,} tokens, of at most {model['max_context']:,}",
        f"Template      {printable(template)}",
        f"Sampling      {sampling or 'always the likeliest token'}",
    ]


def _size_lines(stored: Footprint, here: Footprint) -> list[str]:
    """Bytes by what they are for; twice where this device computes in another dtype."""
    columns = {"Memory": stored}
    if here.dtype != stored.dtype:
        columns = {f"in {_dtype_name(stored)}": stored, f"here, {_dtype_name(here)}": here}
    rows = {"Weights": [footprint.weights.held for footprint in columns.values()]}
    if stored.adapters[0]:
        rows["Adapters"] = [footprint.adapters[0] for footprint in columns.values()]
    for kind, caches in stored.caches.items():
        label = f"Cache, {caches.layers} {KINDS[kind]} layers"
        rows[label] = [footprint.caches[kind].held for footprint in columns.values()]
    rows["To work in"] = [footprint.workspace for footprint in columns.values()]
    rows["Needed"] = [footprint.needed for footprint in columns.values()]
    if here.optional_workspace:
        rows["For prompts, while free"] = [footprint.optional_workspace for footprint in columns.values()]
    rows["Read for each token"] = [footprint.bytes_per_token for footprint in columns.values()]
    lines = [f"{'':28}" + "".join(f"{title:>16}" for title in columns)]
    return lines + [f"{label:28}" + "".join(f"{size(value):>16}" for value in values) for label, values in rows.items()]


def _machine_lines(here: Machine, macs: list[Machine]) -> list[str]:
    lines = [f"{'':28}{'memory':>10}{'for models':>12}{'bandwidth':>12}{'fits':>6}{'tokens/s':>10}"]
    for machine in (here, *macs):
        # a Mac's memory as it is sold, in binary gigabytes; the rest in the unit of what models need
        memory = "?" if machine.memory is None else f"{machine.memory / (1 << 30):.3g} GB"
        if machine is here and machine.memory is not None:
            memory = size(machine.memory)
        usable = "?" if machine.usable is None else size(machine.usable)
        bandwidth = f"{_rounded(machine.bandwidth / 1e9)}{'*' if machine.is_measured else ''} GB/s"
        fits = {True: "yes", False: "no", None: "?"}[machine.fits]
        speed = "-" if machine.fits is False else _rounded(machine.speed)
        name = printable(machine.name)[:27]
        lines.append(f"{name:28}{memory:>10}{usable:>12}{bandwidth:>12}{fits:>6}{speed:>10}")
    if here.footprint.experts is not None:
        lines.append("tokens/s: what is to be expected with experts from an SSD; nobody has measured it on a Mac yet")
        return lines
    lines.append("tokens/s: the most that the bandwidth allows, one conversation at a time")
    if here.is_measured:
        lines.append("*: measured by a copy just now")
    return lines


def _rounded(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def _short(count: int) -> str:
    """A number of parameters: 6.12 billion, 4.9 million."""
    return f"{count / 1e9:.2f} billion" if count >= 1e8 else f"{count / 1e6:.1f} million"
