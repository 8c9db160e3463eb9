"""`afmoe-mlx lora`: examples become an adapter."""

import math
import shlex
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import mlx.core as mx

from .. import device
from ..api import DEMO
from ..checkpoint import load_model, resolve
from ..checkpoint.files import read_config_json, read_headers, require_dtypes, stored_dtype
from ..checkpoint.foreign import translate
from ..checkpoint.hub import resolve_headers, resolve_small_files
from ..checkpoint.load import empty_model
from ..command_line.progress import progress_bar
from ..command_line.requests.tuning import LoraRequest
from ..command_line.training_progress import training_progress
from ..errors import AdapterError, FitError, InputError
from ..footprint import Footprint
from ..models import CausalLM, read_config
from ..terminal import note, size, write, write_json
from ..tokenizer import Tokenizer
from ..training.adapter import read_adapter
from ..training.apply import apply, model_type_of
from ..training.batches import Batches
from ..training.datasets import Dataset
from ..training.examples import Example, check_tokens, make_examples
from ..training.group import Group
from ..training.memory import training_memory
from ..training.optimizers import OptimizerName
from ..training.plan import Plan
from ..training.saved import AdapterFolder, Saved
from ..training.trainable import Change, Kind, restore
from ..training.trainer import loss_of
from ..training.training import Options, Wrote, adapter_config, start, training


def run(request: LoraRequest) -> None:
    """Train, or say what would be trained, and take the loss on the test split if asked."""
    options, folder = _options(request), AdapterFolder(request.adapter_path)
    group = Group()
    data = None if request.data is None else _Data(request, options, group)
    if request.dry_run:
        _plan(request, options, data, group)
        return
    assert data is not None
    if not request.train:
        _test(request, data, group)
        return
    saved = _where_to_go_on(request, folder, group)
    _plan(request, options, data, group)
    model = _load(request)
    start(model, options)
    if request.resume_adapter_file is not None:
        _begin_with(model, request.resume_adapter_file)
    with folder.held() if group.rank == 0 else nullcontext():
        if saved is None and group.rank == 0:
            told = {"model": request.model, "data": request.data, "mask_prompt": request.mask_prompt}
            folder.begin(told | adapter_config(model, options))
        _train(request, options, model, data, folder, group, saved)
    if request.test:
        _report_test(request, model, data, group)


class _Data:
    """The examples of each split that is asked for, as tokens that fit the options."""

    def __init__(self, request: LoraRequest, options: Options, group: Group) -> None:
        assert request.data is not None
        dataset = Dataset(request.data)
        folder, _ = resolve_small_files(_source(request), revision=request.revision)
        self._tokenizer = Tokenizer.from_folder(folder)
        self._dataset, self._mask_prompt = dataset, request.mask_prompt
        self._options, self._group = options, group
        self.train = self._examples("train") if request.train or request.dry_run else []
        self.valid = self._examples("valid") if request.train else []
        self.test = self._examples("test") if request.test else []
        if request.train and not self.train:
            raise InputError(f"{request.data}: no examples to learn: expected some in train.jsonl")
        if request.test and not self.test:
            raise InputError(f"{request.data}: no examples to test: expected some in test.jsonl, or leave out --test")
        if request.train and not self.valid and group.rank == 0:
            note(f"{request.data}: none in valid.jsonl, to tell whether more is learned than the examples themselves.")

    @property
    def all(self) -> list[Example]:
        """Of every split."""
        return [*self.train, *self.valid, *self.test]

    def batches(self, examples: Sequence[Example]) -> Batches:
        """Of this process."""
        options, group = self._options, self._group
        return Batches(examples, options.batch_size, options.max_seq_length, rank=group.rank, ranks=group.size)

    def _examples(self, split: str) -> list[Example]:
        rows = list(self._dataset.rows(split))
        with progress_bar(f"reading {split}", at_least=1000) as show:
            examples = make_examples(rows, self._tokenizer, mask_prompt=self._mask_prompt, on_progress=show)
        if examples and (cut := self.batches(examples).cut) and self._group.rank == 0:
            what = f"{cut} of {len(examples)} {split} examples have more"
            note(f"{what} than {self._options.max_seq_length} tokens and are cut there, see --max-seq-length.")
        return examples


def _source(request: LoraRequest) -> Any:
    if request.model == "demo" and request.revision is not None:
        raise InputError("the demo comes with the package and has no revisions: leave out the revision")
    return DEMO if request.model == "demo" else request.model


def _options(request: LoraRequest) -> Options:
    return Options(
        fine_tune_type=Kind(request.fine_tune_type.value),
        num_layers=request.num_layers,
        targets=tuple(request.target or ()),
        experts=request.experts,
        router=request.router,
        change=Change(request.rank, request.scale, request.dropout),
        optimizer=OptimizerName(request.optimizer.value),
        optimizer_config=dict(request.optimizer_config or {}),
        learning_rate=request.learning_rate,
        lr_schedule=request.lr_schedule,
        iters=request.iters,
        batch_size=request.batch_size,
        grad_accumulation_steps=request.grad_accumulation_steps,
        max_seq_length=request.max_seq_length,
        grad_checkpoint=request.grad_checkpoint,
        steps_per_report=request.steps_per_report,
        steps_per_eval=request.steps_per_eval,
        val_batches=request.val_batches,
        save_every=request.save_every,
        seed=request.seed,
    )


def _where_to_go_on(request: LoraRequest, folder: AdapterFolder, group: Group) -> Saved | None:
    """Where the training in the folder was saved, if that is to go on; AdapterError for a folder that is taken."""
    if request.resume:
        saved = folder.last()
        if not group.agrees(0 if saved is None else saved.step):
            raise AdapterError(f"{folder.path}: not the same on all machines: copy it from the first to the others")
        if saved is None and folder.is_taken:
            found = "an adapter without the state of a training: --overwrite replaces it"
            raise AdapterError(f"{folder.path}: {found}, --resume-adapter-file begins with it")
        if saved is None and group.rank == 0:
            note(f"{folder.path}: nothing was saved there yet: begun anew.")
        if saved is not None and saved.step >= request.iters:
            raise AdapterError(f"{folder.path}: trained for {saved.step} batches already: raise --iters to go on")
        return saved
    if folder.is_taken and not request.overwrite:
        raise AdapterError(f"{folder.path}: an adapter is there: --resume goes on with it, --overwrite replaces it")
    return None


def _plan(request: LoraRequest, options: Options, data: _Data | None, group: Group) -> None:
    """Say what is trained, in what memory; FitError where this machine has not got it."""
    folder, headers = resolve_headers(_source(request), revision=request.revision)
    raw, found = translate(read_config_json(folder), headers)
    model, _ = empty_model(folder, raw, read_config(raw), found)
    model.dtype = device.compute_dtype(stored_dtype(found))
    targets = start(model, options)
    check_tokens([] if data is None else data.all, model.config.vocab_size)
    rows = -(-options.batch_size // group.size)
    columns = options.max_seq_length
    if data is not None and data.train:
        columns = data.batches(data.train).longest
    held = Footprint.of_checkpoint(model.config, found, context=columns).weights.held
    accumulates = options.grad_accumulation_steps > 1
    memory = training_memory(model, held, rows, columns, options.optimizer, accumulates=accumulates)
    plan = Plan(model, targets, memory, (rows, columns))
    if group.rank == 0:
        if request.as_json and request.dry_run:
            write_json(plan.to_json(), indent=2)
        elif request.dry_run:
            write(plan.to_text() + "\n")
        else:
            note(plan.to_text())
    usable = device.memory().usable
    if usable is not None and memory.peak > usable and not request.force and not request.dry_run:
        found_here = f"training needs about {size(memory.peak)}, this machine has {size(usable)} for it"
        less = "a smaller --batch-size or --max-seq-length" + ("" if options.grad_checkpoint else ", --grad-checkpoint")
        raise FitError(f"{found_here}: take {less}; --force trains anyway")


def _load(request: LoraRequest) -> CausalLM:
    name = request.model
    folder = DEMO if name == "demo" else resolve(name, revision=request.revision)
    return load_model(folder, fuse=False)[0]


def _begin_with(model: CausalLM, path: str) -> None:
    """Take the weights of an adapter's file, which must be of the same maps."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise AdapterError(f"{path}: no such file: expected the adapters.safetensors of a training")
    require_dtypes(read_headers([file]))
    restore(model, dict(mx.load(str(file))), path)  # type: ignore[arg-type]


def _train(
    request: LoraRequest,
    options: Options,
    model: CausalLM,
    data: _Data,
    folder: AdapterFolder,
    group: Group,
    saved: Saved | None,
) -> None:
    watching = training_progress(options, is_shown=group.rank == 0, begun=0 if saved is None else saved.step)
    kept = 0 if saved is None else saved.step
    try:
        with device.resident(), watching as show:
            for event in training(model, data.train, data.valid, options, folder, group, saved=saved):
                show(event)
                kept = event.step if isinstance(event, Wrote) else kept
    except KeyboardInterrupt:
        if group.rank == 0:
            note(f"Interrupted. {_to_go_on(request, kept)}")
        raise
    if group.rank == 0:
        note(
            f"Wrote {folder.path}. Try it: afmoe-mlx chat --model {shlex.quote(request.model)}"
            f" --adapter-path {shlex.quote(str(folder.path))}"
        )


def _to_go_on(request: LoraRequest, kept: int) -> str:
    if not kept:
        return "Nothing was saved yet, see --save-every."
    given = {"--overwrite": request.overwrite, "--resume-adapter-file": request.resume_adapter_file is not None}
    others = " and ".join(name for name, is_given in given.items() if is_given)
    again = f"--resume in place of {others}" if others else "--resume"
    return f"What {kept} batches gave is kept: the same command with {again} goes on there."


def _test(request: LoraRequest, data: _Data, group: Group) -> None:
    """The loss on the test split of the model with the adapter that is in --adapter-path, or, without one, as it is."""
    model = _load(request)
    check_tokens(data.all, model.config.vocab_size)
    folder = AdapterFolder(request.adapter_path)
    if folder.is_taken:
        apply(model, read_adapter(folder.path, model_type_of(model)))
    elif group.rank == 0:
        note(f"{folder.path}: no adapter: the loss is the model's own.")
    model.freeze()
    _report_test(request, model, data, group)


def _report_test(request: LoraRequest, model: CausalLM, data: _Data, group: Group) -> None:
    loss = loss_of(model, data.batches(data.test).once(request.test_batches), group)
    if group.rank:
        return
    perplexity = math.inf if loss.mean > 700 else math.exp(loss.mean)
    if request.as_json:
        write_json({"test_loss": loss.mean, "test_perplexity": perplexity, "tokens": loss.tokens}, indent=2)
    else:
        write(f"Test loss {loss.mean:.3f}, perplexity {perplexity:.2f}, {loss.tokens} tokens\n")
