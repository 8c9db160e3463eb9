"""Conversions whose scales, biases and norms learn from the original."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten, tree_unflatten

from afmoe_mlx import convert, load_model
from afmoe_mlx.calibration import Calibration, distillation, student
from afmoe_mlx.calibration.distillation import Distillation
from afmoe_mlx.calibration.student import Arrays, Formats, Lesson, Part, Student, learned_names
from afmoe_mlx.conversion import Options
from afmoe_mlx.conversion.job import make_job
from afmoe_mlx.conversion.source import open_source
from afmoe_mlx.evaluation import evaluate
from helpers.calibrated import source_folder
from helpers.converted import contents, stored
from helpers.tiny import ARCHITECTURES, tokens

# One has a head of its own, the other's is its embeddings.
TIED = {"afmoe": False, "lfm2_moe": True}
FORMAT: dict[str, Any] = {"bits": 3, "group_size": 32}


@dataclass(frozen=True)
class Made:
    """A source, and what it becomes without and with learning."""

    source: Path
    calibrated: Path
    distilled: Path
    options: dict[str, Any]


def shorten(patch: pytest.MonkeyPatch) -> None:
    for name, value in {"EPOCHS": 2, "STEP": 64, "RATE": 1e-2}.items():
        patch.setattr(distillation, name, value)


@pytest.fixture(autouse=True, name="short")
def short_training(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch)


@pytest.fixture(scope="module", name="made")
def conversions(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Made:
    folder = tmp_path_factory.mktemp("made")
    source = source_folder(folder, "afmoe", tie_word_embeddings=True)
    options = FORMAT | {"calibrate": Calibration(text=text, tokens=200, method="distil")}
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch)
        distilled = convert(source, folder / "distilled", **options)
    calibrated = convert(source, folder / "gptq", **FORMAT, calibrate=Calibration(text=text, tokens=200))
    return Made(source, calibrated, distilled, options)


def test_it_comes_closer_to_the_original_with_the_codes_and_routers_of_gptq_in_as_many_bytes(
    made: Made, text: Path
) -> None:
    before, after = stored(made.calibrated), stored(made.distilled)
    assert {name: (a.shape, a.dtype) for name, a in before.items()} == {
        name: (a.shape, a.dtype) for name, a in after.items()
    }
    sizes = [
        {path.name: path.stat().st_size for path in folder.iterdir()} for folder in (made.calibrated, made.distilled)
    ]
    assert sizes[0] == sizes[1]
    changed = {name for name in before if not mx.array_equal(before[name], after[name]).item()}
    tied = {"model.embed_tokens.weight"}  # these alone have other codes
    assert {name for name in changed if not name.endswith((".scales", ".biases", "norm.weight"))} == tied
    assert {"model.norm.weight", "model.layers.1.mlp.experts.up_proj.scales", "model.embed_tokens.biases"} <= changed
    found = [evaluate(folder, reference=made.source, text=text) for folder in (made.calibrated, made.distilled)]
    assert found[1].kl_mean < 0.95 * found[0].kl_mean


def test_interrupted_and_run_again_the_bytes_are_those_of_an_undisturbed_run(made: Made, tmp_path: Path) -> None:
    target, stops = tmp_path / "out", []

    def stop(progress: Any) -> None:
        places = (progress.layer >= 1, progress.learned > 0, progress.learned > progress.to_learn / 2)
        if sum(places) > len(stops):
            stops.append(progress)
            raise KeyboardInterrupt

    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            convert(made.source, target, on_progress=stop, **made.options)
        assert not target.exists()
    assert contents(convert(made.source, target, **made.options)) == contents(made.distilled)


@dataclass
class Pupil:
    """A student of a model in few bits, and what it is to learn."""

    folder: Path
    student: Student
    values: Arrays
    lessons: list[Lesson]
    head: Any
    formats: Formats


@pytest.fixture(params=ARCHITECTURES, name="pupil")
def tiny_pupil(request: pytest.FixtureRequest, tmp_path: Path) -> Pupil:
    source = source_folder(tmp_path, request.param, tie_word_embeddings=TIED[request.param])
    folder = convert(source, tmp_path / "out", **FORMAT)
    job, found = make_job(open_source(source), Options(**FORMAT)), stored(folder)
    model, _ = load_model(folder, fuse=False)
    values = {name: found[name] for name in learned_names(model, job.formats)}
    made = Student(job.config, job.plan.groups, job.formats, found.__getitem__)
    lessons = [
        Lesson(tokens(*shape), mx.random.normal((*shape, 32), key=mx.random.key(shape[0])))
        for shape in ((2, 9), (1, 5))
    ]
    head = mx.random.normal((job.config.vocab_size, 32), key=mx.random.key(7))
    return Pupil(folder, made, values, lessons, lambda h: h @ head.T, job.formats)


def test_gradients_part_by_part_are_those_of_the_whole_model(pupil: Pupil, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(student, "LOGITS", 500)  # some tokens at a time
    found: Arrays = {}
    pupil.student.learn(pupil.values, pupil.lessons, pupil.head, found.update)
    model, _ = load_model(pupil.folder, fuse=False)
    model.train()

    def mean(values: Arrays) -> mx.array:
        model.update(tree_unflatten(list(values.items())))
        total = mx.array(0.0)
        for lesson in pupil.lessons:
            log_p, log_q = (h - mx.logsumexp(h, -1, True) for h in (pupil.head(lesson.normed), model(lesson.ids)))
            total = total + (mx.exp(log_p) * (log_p - log_q)).sum()
        return total / sum(lesson.ids.size for lesson in pupil.lessons)

    expected, gradients = mx.value_and_grad(mean)(pupil.values)
    assert pupil.student.divergence(pupil.values, pupil.lessons, pupil.head) == pytest.approx(expected.item(), rel=1e-5)
    assert found.keys() == gradients.keys()
    assert not any("router" in name or "feed_forward.gate." in name for name in found)
    for name, gradient in gradients.items():
        assert mx.abs(found[name] - gradient).max().item() <= 1e-4 * mx.abs(gradient).max().item() + 1e-7, name


def test_plain_weights_of_one_part_are_held_at_a_time(pupil: Pupil, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, most, fill = 0, 0, Part.opened

    @contextmanager
    def counted(self: Part, values: Arrays) -> Iterator[Arrays]:
        nonlocal opened, most
        opened += 1
        most = max(most, opened)
        with fill(self, values) as plain:
            yield plain
        opened -= 1

    monkeypatch.setattr(Part, "opened", counted)
    before = tree_flatten(pupil.student._model.parameters())
    pupil.student.learn(pupil.values, pupil.lessons, pupil.head, lambda _: None)
    after = tree_flatten(pupil.student._model.parameters())
    assert most == 1
    assert all(ours is theirs for (_, ours), (_, theirs) in zip(after, before, strict=True))


def test_what_does_not_bring_it_closer_is_not_kept(
    pupil: Pupil, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distillation, "RATE", 100.0)
    training = Distillation(pupil.student, pupil.head, pupil.lessons, tmp_path / "state.safetensors", seed=0)
    best = training.run(pupil.values, pupil.formats, lambda done, total: None)
    assert all(mx.array_equal(best[name], array).item() for name, array in pupil.values.items())
