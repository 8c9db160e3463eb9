"""A training is decided by its options and seed: how it is parted, interrupted or kept in memory changes nothing."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from afmoe_mlx.errors import AdapterError, InputError, TrainingError
from afmoe_mlx.models import CausalLM
from afmoe_mlx.training import loss as losses
from afmoe_mlx.training.batches import Batch, Batches
from afmoe_mlx.training.group import Group
from afmoe_mlx.training.loss import summed_loss
from afmoe_mlx.training.memory import training_memory
from afmoe_mlx.training.optimizers import OptimizerName
from afmoe_mlx.training.saved import AdapterFolder, check_settings
from afmoe_mlx.training.trainable import Change, Kind, trained
from afmoe_mlx.training.trainer import Trainer, loss_of
from afmoe_mlx.training.training import Options, Stepped, Wrote, start, training
from helpers.lessons import examples, trained_on
from helpers.tiny import ARCHITECTURES, tiny, tokens

OPTIONS = Options(iters=6, batch_size=2, learning_rate=1e-2, save_every=2, change=Change(rank=2, dropout=0.2))


def small(model_type: str = "afmoe", **changes: Any) -> CausalLM:
    """A dense layer and one with experts."""
    kinds = {"layer_types": ["conv", "full_attention"]} if model_type == "lfm2_moe" else {}
    return tiny(model_type, num_hidden_layers=2, num_dense_layers=1, **kinds, **changes)


def learned(model: CausalLM) -> dict[str, mx.array]:
    return dict(tree_flatten(model.trainable_parameters()))


def differences(a: dict[str, mx.array], b: dict[str, mx.array]) -> float:
    assert a.keys() == b.keys()
    return max(mx.abs(a[name] - b[name]).max().item() for name in a)


class KilledError(Exception):
    pass


@pytest.mark.parametrize("optimizer", [OptimizerName.adamw, OptimizerName.adafactor])
def test_killed_and_resumed_it_comes_to_the_same_weights(
    tmp_path: Path, optimizer: OptimizerName, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(OPTIONS, optimizer=optimizer, grad_accumulation_steps=2, lr_schedule=None)
    whole = small()
    trained_on(whole, examples(), tmp_path / "whole", options)

    write = AdapterFolder._write

    def killed(self: AdapterFolder, name: str, *rest: Any) -> None:
        if name.startswith("0000004"):  # in the middle of what is saved after the fourth batch
            write(self, name, *rest)
            raise KilledError
        write(self, name, *rest)

    monkeypatch.setattr(AdapterFolder, "_write", killed)
    with pytest.raises(KilledError):
        trained_on(small(), examples(), tmp_path / "parts", options)
    monkeypatch.undo()
    assert AdapterFolder(tmp_path / "parts").last().step == 2
    parts = small()
    events = trained_on(parts, examples(), tmp_path / "parts", options, resumes=True)
    assert [event.step for event in events if isinstance(event, Stepped)] == [3, 4, 5, 6]
    assert differences(learned(whole), learned(parts)) == 0
    for name in ("adapters.safetensors", "0000006_adapters.safetensors", "training_state.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()


def test_a_training_that_is_made_longer_comes_to_the_weights_of_a_long_one(tmp_path: Path) -> None:
    options = replace(OPTIONS, seed=3, iters=4)
    whole, parts = small(), small()
    trained_on(whole, examples(), tmp_path / "whole", options)
    trained_on(small(), examples(), tmp_path / "parts", replace(options, iters=2))
    trained_on(parts, examples(), tmp_path / "parts", options, resumes=True)
    assert differences(learned(whole), learned(parts)) == 0


def test_a_folder_is_one_trainings_and_keeps_nothing_half_written(tmp_path: Path) -> None:
    folder = AdapterFolder(tmp_path)

    def killed(path: Path) -> None:
        path.write_text("half")
        raise KilledError

    with folder.held():
        with pytest.raises(AdapterError, match="another training writes there"), AdapterFolder(tmp_path).held():
            pass
        with pytest.raises(KilledError):
            folder._write("adapters.safetensors", killed)
    with folder.held():
        assert list(tmp_path.iterdir()) == []


def test_other_examples_or_options_are_not_gone_on_with(tmp_path: Path) -> None:
    options = replace(OPTIONS, iters=2)
    trained_on(small(), examples(), tmp_path, options)
    longer = replace(options, iters=3)
    found = AdapterFolder(tmp_path).last().settings
    check_settings(found, longer.settings(examples()))
    check_settings(
        found | {"optimizer_config": {"betas": [0.9, 0.9]}},
        replace(longer, optimizer_config={"betas": (0.9, 0.9)}).settings(examples()),
    )
    with pytest.raises(AdapterError, match="its examples were others"):
        trained_on(small(), examples(seed=1), tmp_path, longer, resumes=True)
    with pytest.raises(AdapterError, match="seed was 0, is 1"):
        trained_on(small(), examples(), tmp_path, replace(longer, seed=1), resumes=True)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_batches_that_make_one_update_are_as_one_batch(model_type: str, tmp_path: Path) -> None:
    """Of different lengths: the mean is over all tokens, not over the batches' means."""
    taught = [*examples(2, least=5, most=5), *examples(2, least=30, most=30, seed=1)]
    options = Options(iters=2, batch_size=2, grad_accumulation_steps=2, learning_rate=1e-2, optimizer=OptimizerName.sgd)
    apart, together = small(model_type), small(model_type)
    trained_on(apart, taught, tmp_path / "a", options)
    whole = replace(options, iters=1, batch_size=4, grad_accumulation_steps=1)
    trained_on(together, taught, tmp_path / "b", whole)
    assert differences(learned(apart), learned(together)) < 1e-6


@pytest.mark.parametrize("kind", [Kind.lora, Kind.dora, Kind.full])
@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_recomputed_activations_give_the_same_gradients(model_type: str, kind: Kind) -> None:
    found = []
    for recomputes in (False, True):
        model = small(model_type)
        start(model, Options(fine_tune_type=kind, experts=kind is Kind.lora, grad_checkpoint=recomputes))
        model.train()
        batch = tokens(2, 12)
        gradient = nn.value_and_grad(model, lambda m=model, b=batch: summed_loss(m, b, mx.ones(b.shape, mx.bool_)))
        found.append(dict(tree_flatten(gradient()[1])))
    assert any(mx.abs(array).max().item() > 0 for array in found[0].values())
    assert differences(*found) < 1e-5


def peak(length: int, *, recomputes: bool) -> tuple[int, int]:
    """Bytes of a step on a row of so many tokens, and those foretold."""
    model = tiny(num_hidden_layers=16, num_attention_heads=2, num_key_value_heads=1)
    start(model, Options(grad_checkpoint=recomputes))
    trainer = Trainer(model, Options().make_optimizer(), Group())
    weights = sum(array.nbytes for array in dict(tree_flatten(model.parameters())).values())
    told = training_memory(model, weights, 1, length, OptimizerName.adam, accumulates=False)
    batch = Batch(tokens(1, length), mx.ones((1, length), mx.bool_), ())
    mx.eval(model.parameters(), trainer.optimizer.state)
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory() - weights - told.trained
    trainer.learn(batch, updates=True)
    return mx.get_peak_memory() - max(before, 0), told.peak


def test_recomputing_takes_less_than_0_6_of_the_memory_at_1024_tokens_and_both_are_foretold() -> None:
    kept, told = peak(1024, recomputes=False)
    again, told_again = peak(1024, recomputes=True)
    assert again <= 0.6 * kept
    assert 0.8 < told / kept < 1.5
    assert 0.8 < told_again / again < 1.5


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_a_loss_in_pieces_is_the_loss(model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small(model_type)
    start(model, Options())
    model.train()
    batch, counted = tokens(2, 12), tokens(2, 12, seed=1, vocab=2) > 0
    gradient = nn.value_and_grad(model, lambda: summed_loss(model, batch, counted))
    whole, found = gradient()
    monkeypatch.setattr(losses, "PIECE", 5 * model.config.vocab_size)
    parts, found_in_parts = gradient()
    assert abs(whole.item() - parts.item()) < 1e-4
    largest = max(mx.abs(array).max().item() for array in dict(tree_flatten(found)).values())
    assert differences(dict(tree_flatten(found)), dict(tree_flatten(found_in_parts))) < 2e-6 * largest


def test_pieces_hold_one_pieces_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small(vocab_size=4000)
    start(model, Options())
    model.train()
    batch = tokens(1, 513)
    gradient = nn.value_and_grad(model, lambda: summed_loss(model, batch, mx.ones(batch.shape, mx.bool_)))
    peaks = []
    for rows in (512, 32):
        monkeypatch.setattr(losses, "PIECE", rows * 4000)
        mx.clear_cache()
        mx.reset_peak_memory()
        mx.eval(gradient())
        peaks.append(mx.get_peak_memory())
    assert peaks[0] - peaks[1] > 512 * 4000 * 4  # of all positions: the logits alone, and what is made of them


def test_tokens_that_a_model_does_not_know_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"train\.jsonl:[1-6]: token \d+, and the model knows 40: expected its own"):
        trained_on(small(), examples(vocab=50), tmp_path, OPTIONS)


def test_what_is_no_number_stops_it_with_its_step_and_examples(tmp_path: Path) -> None:
    model = small()
    taught = examples(2, least=6, most=6)
    options = replace(OPTIONS, batch_size=1, iters=4, save_every=1, learning_rate=1e-3)
    start(model, options)
    folder = AdapterFolder(tmp_path)
    folder.begin({})
    events = training(model, taught, [], options, folder, Group())
    assert isinstance(next(events), Stepped)
    assert isinstance(next(events), Wrote)
    model.model.layers[0].self_attn.q_proj.lora_b = mx.full(model.model.layers[0].self_attn.q_proj.lora_b.shape, mx.nan)
    with pytest.raises(TrainingError, match=r"step 2: the loss or a gradient is no number, after train.jsonl:[12]"):
        next(events)
    assert folder.last().step == 1
    assert all(mx.isfinite(array).all().item() for array in folder.last().arrays.values())


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_full_training_leaves_routers_and_their_bias_alone(model_type: str, tmp_path: Path) -> None:
    model = small(model_type)
    before = dict(tree_flatten(model.parameters()))
    options = replace(OPTIONS, fine_tune_type=Kind.full, num_layers=1, iters=1, optimizer=OptimizerName.adam)
    trained_on(model, examples(), tmp_path, options)
    after = dict(tree_flatten(model.parameters()))
    changed = {name for name in after if not mx.array_equal(before[name], after[name]).item()}
    assert changed == trained(model).keys()
    assert all(name.startswith("model.layers.1.") for name in changed)
    assert not any("router" in name or name.endswith((".gate.weight", "expert_bias")) for name in changed)
    assert any("experts" in name or "switch_mlp" in name for name in changed)


def test_each_example_is_in_one_batch_a_pass_and_the_order_is_the_seeds() -> None:
    taught = examples(11)

    def order(seed: int, steps: int) -> list[tuple[str, ...]]:
        batches = Batches(taught, 3, 100, seed=seed)
        return [tuple(batches[step].origins) for step in range(steps)]

    passes = [sorted(sum(order(0, 8)[start : start + 4], ())) for start in (0, 4)]
    assert passes == [sorted(example.origin for example in taught)] * 2
    assert order(0, 8)[:4] != order(0, 8)[4:]
    assert order(0, 8) == order(0, 8)
    assert order(0, 8) != order(1, 8)


def test_processes_part_a_batch_among_them() -> None:
    taught = examples(5)
    whole = Batches(taught, 4, 100)
    parts = [Batches(taught, 4, 100, rank=rank, ranks=2) for rank in (0, 1)]
    for step in range(4):
        rows = [row for part in parts for row in part[step].learned.tolist() if any(row)]
        assert sorted(rows) == sorted(whole[step].learned.tolist())
    with pytest.raises(InputError, match="a multiple of 2, the processes"):
        Batches(taught, 3, 100, ranks=2)


def test_what_is_cut_or_not_learned_is_in_no_loss() -> None:
    model = small()
    (long,) = examples(1, least=20, most=20)
    batch = next(Batches([long], 1, 12).once())
    loss = loss_of(model, [batch], Group())
    assert loss.tokens == 10  # of 12, the first two are not learned
    logits = model(mx.array([long.tokens[:12].tolist()]))
    expected = nn.losses.cross_entropy(logits[:, 1:11], mx.array([long.tokens[2:12].tolist()]), reduction="sum")
    assert abs(loss.total - expected.item()) < 1e-4
    with pytest.raises(InputError, match="the prompt alone has 2 tokens or more"):
        Batches([long], 1, 2)
