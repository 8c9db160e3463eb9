"""`training`: from a model and examples to an adapter, step by step."""

import hashlib
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import mlx.core as mx

from ..errors import InputError, TrainingError
from ..models import CausalLM
from .batches import Batches
from .examples import Example, check_tokens
from .group import Group
from .optimizers import OptimizerName, make_optimizer
from .saved import AdapterFolder, Saved, check_settings
from .targets import targets_of
from .trainable import Change, Kind, begin, restore, trained
from .trainer import Loss, Trainer, loss_of


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a training is, by mlx-lm's names. InputError for numbers that make no sense."""

    fine_tune_type: Kind = Kind.lora
    num_layers: int = -1
    """The last so many; -1: all."""
    targets: Sequence[str] = ()
    """Names of maps in a layer, in place of attention, dense and shared MLPs."""
    experts: bool = False
    router: bool = False
    change: Change = field(default_factory=Change)
    optimizer: OptimizerName = OptimizerName.adam
    optimizer_config: Mapping[str, Any] = field(default_factory=dict)
    learning_rate: float = 1e-5
    lr_schedule: Mapping[str, Any] | None = None
    iters: int = 1000
    batch_size: int = 4
    grad_accumulation_steps: int = 1
    max_seq_length: int = 2048
    grad_checkpoint: bool = False
    steps_per_report: int = 10
    steps_per_eval: int = 200
    val_batches: int = 25
    save_every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        names = ("iters", "batch_size", "grad_accumulation_steps", "steps_per_report", "steps_per_eval", "save_every")
        for name in names:
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}: expected 1 or more")
        if self.val_batches < -1 or self.val_batches == 0:
            raise InputError(f"val_batches is {self.val_batches}: expected 1 or more, or -1 for all")
        if not 0 <= self.seed < 1 << 64:
            raise InputError(f"seed is {self.seed}: expected 0 or more, in 64 bits")
        self.make_optimizer()  # of options and a schedule that it takes

    def settings(self, examples: Sequence[Example]) -> dict[str, Any]:
        """What must be the same for a training to go on where it was: not how long it goes on, nor what it tells."""
        left_out = ("iters", "steps_per_report", "steps_per_eval", "val_batches", "save_every", "grad_checkpoint")
        digest = hashlib.sha256()
        for example in examples:
            digest.update(f"{len(example)} {example.start} ".encode() + example.tokens.tobytes())
        found = {name: value for name, value in asdict(self).items() if name not in left_out}
        return found | {"targets": list(self.targets), "examples": digest.hexdigest()}

    def make_optimizer(self) -> Any:
        return make_optimizer(self.optimizer, self.learning_rate, self.lr_schedule, self.optimizer_config)


@dataclass(frozen=True)
class Stepped:
    """A step was taken. seconds: what it took."""

    step: int
    loss: Loss
    seconds: float
    learning_rate: float


@dataclass(frozen=True)
class Validated:
    """The loss on examples that are not learned, after so many steps."""

    step: int
    loss: Loss


@dataclass(frozen=True)
class Wrote:
    """What stands after a step is on the disk."""

    step: int
    path: Any


Event = Stepped | Validated | Wrote


def start(model: CausalLM, options: Options) -> dict[str, list[str]]:
    """Make the parameters of a model that is not fused trainable, as the options say; the maps by name."""
    names, experts, router = options.targets, options.experts, options.router
    if options.fine_tune_type is Kind.full:
        if names or experts:
            raise InputError("full training takes all weights of its layers: leave out targets and experts")
        experts = True
    targets = targets_of(model, names=names, experts=experts, router=router, layers=options.num_layers)
    mx.random.seed(options.seed)
    begin(model, options.fine_tune_type, [path for paths in targets.values() for path in paths], options.change)
    model.recomputes = options.grad_checkpoint
    return targets


def adapter_config(model: CausalLM, options: Options) -> dict[str, Any]:
    """`adapter_config.json` as mlx-lm writes and reads it, of a model that training was begun on."""
    keys = sorted({name.split(".", 3)[3].rpartition(".")[0] for name in trained(model)})
    parameters = None if options.fine_tune_type is Kind.full else {**asdict(options.change), "keys": keys}
    kind, optimizer = options.fine_tune_type.value, options.optimizer.value
    config = {"fine_tune_type": kind, "num_layers": options.num_layers, "lora_parameters": parameters}
    config |= {"optimizer": optimizer, "optimizer_config": {optimizer: dict(options.optimizer_config)}}
    names = ("learning_rate", "lr_schedule", "iters", "batch_size", "grad_accumulation_steps", "max_seq_length", "seed")
    return config | {name: getattr(options, name) for name in names}


def training(
    model: CausalLM,
    examples: Sequence[Example],
    held_out: Sequence[Example],
    options: Options,
    folder: AdapterFolder,
    group: Group,
    *,
    saved: Saved | None = None,
) -> Iterator[Event]:
    """Train what `start` has made trainable, saving to a folder that was begun; `saved`: where to go on from.

    Raises TrainingError, naming the step and its examples, where the loss or a gradient is no number; what was saved
    before stays. InputError for examples that do not fit, AdapterError for what cannot be written or gone on with.
    """
    check_tokens([*examples, *held_out], model.config.vocab_size)
    shares: dict[str, Any] = {"seed": options.seed, "rank": group.rank, "ranks": group.size}
    batches = Batches(examples, options.batch_size, options.max_seq_length, **shares)
    checks = Batches(held_out, options.batch_size, options.max_seq_length, **shares) if held_out else None
    settings, trainer = options.settings(examples), Trainer(model, options.make_optimizer(), group)
    done = 0
    if saved is not None:
        check_settings(saved.settings, settings)
        restore(model, saved.arrays, str(folder.path))
        trainer.restore(saved.state)
        done = saved.step
    accumulated = options.grad_accumulation_steps
    written = done
    for step in range(done + 1, options.iters + 1):
        if checks is not None and (step == 1 or (step - 1) % options.steps_per_eval == 0):
            yield Validated(step - 1, loss_of(model, checks.once(options.val_batches), group))
        began = time.perf_counter()
        batch, updates = batches[step - 1], step % accumulated == 0 or step == options.iters
        mx.random.seed(random.Random(f"{options.seed} {step} {group.rank}").getrandbits(64))
        loss, is_finite = trainer.learn(batch, updates=updates)
        if not is_finite:
            origins = ", ".join(batch.origins)
            found = f"step {step}: the loss or a gradient is no number, after {origins}"
            raise TrainingError(f"{found}: lower --learning-rate, or look at these examples")
        yield Stepped(step, loss, time.perf_counter() - began, trainer.optimizer.learning_rate.item())
        is_due = step // options.save_every > written // options.save_every or step == options.iters
        if is_due and updates:
            written = step
            if group.rank == 0:
                yield Wrote(step, folder.save(step, trained(model), trainer.state(), settings))
    if checks is not None:
        yield Validated(max(options.iters, done), loss_of(model, checks.once(options.val_batches), group))
