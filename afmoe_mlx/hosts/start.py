"""Loading a model on several hosts, of which this one leads."""

import json
import os
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from .. import device
from ..cache import KVQuantization
from ..checkpoint import load_model
from ..checkpoint.files import read_config_json, stored_dtype
from ..checkpoint.foreign import translate
from ..checkpoint.hub import commit_of, resolve_headers
from ..checkpoint.load import parse_dtype
from ..errors import HostError, InputError
from ..footprint import (
    DEFAULT_CONTEXT,
    ExpertsInMemory,
    check_context,
    check_experts_in_memory,
    check_readable,
    place_experts,
)
from ..models import CausalLM, ModelConfig, read_config
from .connection import connected
from .crew import Followers, all_of
from .hostfile import Hosts, read_hosts
from .identity import digest, samples
from .leader import Leader
from .link import Link
from .orders import Done, Facts, Hello, Join, Load, kept_of
from .plan import Needs, Share, check_shares, plan
from .ring import connect, free_port
from .versions import versions

# Seconds after which, unless told, a host of which nothing is heard is lost.
SILENCE = 60.0
LEAST_SILENCE = 2.0


@dataclass(frozen=True)
class Stored:
    """A model as this host has it, none of its weights read."""

    source: str | Path
    """A folder or a Hub id here."""
    name: str
    """As other hosts are told."""
    revision: str | None
    """The commit of a model of the Hub, which all hosts take; None for one that is in a folder here."""
    folder: Path
    needs: Needs
    identity: str
    samples: dict[str, str]


def load_on_hosts(
    source: str | Path,
    hosts: str | Path | Hosts,
    *,
    name: str | None = None,
    dtype: mx.Dtype | str | None = None,
    revision: str | None = None,
    context: int | None = None,
    kv_quantization: KVQuantization | None = None,
    experts_in_memory: ExpertsInMemory = None,
    force: bool = False,
    silence: float | None = None,
    on_lost: Callable[[str], None] | None = None,
) -> tuple[CausalLM, ModelConfig]:
    """A model whose first layers are here and whose others are on the hosts of a file, and its config.

    source: as for `load_model`; every host reads its own layers, from its own disk or the Hub. name: what the others
    are told instead of `source`. silence: seconds, 60 unless told, after which a host that says nothing is lost.
    on_lost: called, in a thread, with a line that says which; by default the process is ended if it is blocked, or the
    next call raises a HostError. The others are those of `load`. The followers end with this process. Raises HostError,
    FitError, and what `load_model` raises.
    """
    if not isinstance(hosts, Hosts):
        hosts = read_hosts(hosts)
    silence = SILENCE if silence is None else silence
    if not isinstance(silence, int | float) or silence < LEAST_SILENCE:
        raise InputError(f"silence is {silence!r}: expected {LEAST_SILENCE:g} seconds or more")
    stored = open_stored(source, name, dtype, revision, context, kv_quantization, experts_in_memory)
    with connected(hosts, silence, on_lost) as connection:
        crew = connection.crew
        facts = hello(crew, hosts, stored)
        shares = share_out(stored, hosts, facts, force=force)
        if connection.link is None:
            connection.link = join(crew, hosts, facts)
        number = next(connection.models)
        try:
            model = _load(crew, stored, shares, number, force=force)
        except BaseException:
            crew.kill()  # with answers that nobody has read
            raise
    devices = (device.device_name(), *(found.device for found in facts))
    model.beyond = Leader(crew, connection.link, shares, hosts.backend, devices, number)
    connection.leaders.append(weakref.ref(model.beyond))
    with model.beyond.named():
        _warm_up(model)
    return model, model.config


def open_stored(
    source: str | Path,
    name: str | None,
    dtype: mx.Dtype | str | None,
    revision: str | None,
    context: int | None,
    kv_quantization: KVQuantization | None,
    experts_in_memory: ExpertsInMemory = None,
) -> Stored:
    """What is to be loaded, from its config and headers; the arguments are those of `load_on_hosts`."""
    check_context(context)
    check_experts_in_memory(experts_in_memory)
    folder, headers = resolve_headers(source, revision=revision)
    raw = read_config_json(folder)
    identity = digest(raw, headers)
    sampled = samples(folder, headers)
    raw, translated = translate(raw, headers)
    wanted = parse_dtype(dtype) or device.compute_dtype(stored_dtype(translated))
    if experts_in_memory is not None:
        check_readable(os.fspath(source), translated)
    tokens = context or DEFAULT_CONTEXT
    needs = Needs(read_config(raw), translated, wanted, tokens, kv_quantization, experts_in_memory)
    text = os.fspath(source)
    if name is None and os.path.isdir(text):  # one that begins with ~ is in each host's own home
        name = os.path.abspath(text)
    commit = commit_of(source, folder, revision=revision)
    return Stored(source, name or text, commit, folder, needs, identity, sampled)


def hello(crew: Followers, hosts: Hosts, stored: Stored | None) -> list[Facts]:
    """What every follower is; HostError that names one with another version or model, or that cannot take part."""
    source, revision = (None, None) if stored is None else (stored.name, stored.revision)
    followers = hosts.all[1:]
    for i, host in enumerate(followers):
        crew.tell_one(i, Hello(source, revision, host.ip))
    facts = all_of(crew.answers(), Facts)
    for host, found in zip(followers, facts, strict=True):
        if trouble := difference(found, stored):
            raise HostError(f"{host.name} {trouble}")
    return facts


def difference(found: Facts, stored: Stored | None) -> str | None:
    """What a follower has that is not what this machine has, or why it cannot take part; None if all is well."""
    version, mlx = versions()
    if found.version != version:
        return f"has version {found.version} of this program, here is {version}: install the same on all"
    if found.mlx != mlx:
        return f"has version {found.mlx} of MLX, here is {mlx}: install the same on all"
    if found.problem:
        return f"cannot take part: {found.problem}"
    if stored is None:
        return None
    shared = stored.samples.keys() & found.samples.keys()
    if found.identity == stored.identity and not shared and stored.revision is None:
        advice = 'give --revision main (revision="main"), and all take it from the Hub'
        return f"would fetch {stored.name} from the Hub, and this machine has it in a folder: {advice}"
    if found.identity != stored.identity or any(stored.samples[name] != found.samples[name] for name in shared):
        return f"has another model as {stored.name}: copy this machine's there, or remove what it has"
    return None


def share_out(stored: Stored, hosts: Hosts, facts: Sequence[Facts], *, force: bool) -> list[Share]:
    """Who holds what; FitError if it does not fit."""
    usable = [device.memory().usable, *(found.usable for found in facts)]
    # processes of one machine have its memory together
    here = sum(host.is_here or rank == 0 for rank, host in enumerate(hosts.all))
    usable = [
        room if room is None or not (host.is_here or rank == 0) else room // here
        for rank, (room, host) in enumerate(zip(usable, hosts.all, strict=True))
    ]
    shares = plan(stored.needs, [(host.name, room) for host, room in zip(hosts.all, usable, strict=True)])
    if not force:
        check_shares(stored.name, stored.needs, shares)
    return shares


def join(crew: Followers, hosts: Hosts, facts: Sequence[Facts]) -> Link:
    """The link to all followers, which join at the same time; HostError if it does not come about."""
    leader = hosts.all[0]
    ports = [free_port(leader.ip), *(found.port for found in facts)]
    addresses = tuple(f"{host.ip}:{port}" for host, port in zip(hosts.all, ports, strict=True))
    devices = json.dumps([host.rdma for host in hosts.all]) if hosts.backend == "jaccl" else None
    orders = [Join(rank, hosts.backend, addresses, devices) for rank in range(len(hosts.all))]
    for i, order in enumerate(orders[1:]):
        crew.tell_one(i, order)
    try:
        link = connect(orders[0])
    except HostError as error:
        missing = " and ".join(host.name for host in crew.unanswered()) or "a host"
        raise HostError(f"{missing} cannot be reached: {error}") from None
    all_of(crew.answers(), Done)
    return link


def _load(crew: Followers, stored: Stored, shares: Sequence[Share], number: int, *, force: bool) -> CausalLM:
    """The leader's own part, while the followers load theirs."""
    needs = stored.needs
    kind = str(needs.dtype).removeprefix("mlx.core.")
    for i, share in enumerate(shares[1:]):
        part, experts = share.part, share.experts_in_memory
        kept = kept_of(needs.kv_quantization)
        crew.tell_one(i, Load(part.start, part.stop, kind, needs.context, kept, experts, force, number))  # type: ignore[arg-type]
    options = {"context": needs.context, "dtype": needs.dtype, "kv_quantization": needs.kv_quantization}
    model, _ = load_model(
        stored.source,
        revision=stored.revision,
        dtype=needs.dtype,
        place=place_experts(shares[0].experts_in_memory, **options),  # type: ignore[arg-type]
        part=shares[0].part,
    )
    # prompts are then swept here too, so that every host reads its experts once for all of a prompt
    model.reads_experts |= any(done.reads_experts for done in all_of(crew.answers(), Done))
    return model


def _warm_up(model: CausalLM) -> None:
    """A step through all hosts, of a cache that is dropped at once."""
    mx.eval(model(mx.zeros((1, 1), mx.int32), cache=model.make_cache()))
