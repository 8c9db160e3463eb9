"""`afmoe-mlx bench`: runs what it says, counts the bytes that a step reads, and refuses nonsense in one line."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from afmoe_mlx import device
from afmoe_mlx.commands import bench
from afmoe_mlx.commands.bench import bytes_per_token, decode_rows, prefill_rows, run_trial
from afmoe_mlx.generation import SamplingOptions, decode, make_sampler, prefill
from afmoe_mlx.models import fuse
from helpers.command_line import invoke
from helpers.tiny import ARCHITECTURES, tiny, tiny_folder, tokens

SMALL = ("-p", "6", "-g", "3", "-n", "3")


@pytest.fixture(autouse=True)
def quick_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "copy_bandwidth", lambda: 1e9)


def run(*arguments: str) -> Any:
    return invoke(["bench", *arguments])


def nbytes(model: Any, part: str = "") -> int:
    return sum(array.nbytes for name, array in dict(tree_flatten(model.parameters())).items() if part in name)


def test_json_has_every_trial_their_medians_and_the_bandwidth_of_what_was_read(model: str) -> None:
    result = run("--model", model, *SMALL, "--json")
    value = json.loads(result.stdout)
    assert result.exit_code == 0
    assert (value["model"], value["prompt_tokens"], value["generation_tokens"]) == (model, 6, 3)
    assert len(value["trials"]) == 3
    for name in ("prompt_tps", "generation_tps"):
        assert value[name] == sorted(trial[name] for trial in value["trials"])[1]
    read = value["bytes_per_token"]
    assert read == value["weight_bytes_per_token"] + value["cache_bytes_per_token"]
    assert value["bandwidth_bytes_per_second"] == pytest.approx(read * value["generation_tps"])
    assert value["copy_bytes_per_second"] == 1e9
    assert value["bandwidth_fraction"] == pytest.approx(read * value["generation_tps"] / 1e9)
    assert value["device"] == {"name": device.device_name(), "backend": device.backend()}
    assert value["peak_memory_gb"] > 0


def test_a_person_gets_a_line_a_figure_and_a_note_a_trial(model: str) -> None:
    result = run("--model", model, *SMALL)
    assert [line.split("  ")[0] for line in result.stdout.splitlines()[1:]] == [
        "Prompt",
        "Generation",
        "Peak memory",
        "Read per token",
        "Bandwidth",
    ]
    assert [line for line in result.stderr.splitlines() if line.startswith("Trial")][-1].startswith("Trial 3 of 3")


def test_without_a_model_it_is_the_demo_with_its_note() -> None:
    result = run(*SMALL, "--json")
    assert json.loads(result.stdout)["model"] == "demo"
    assert "built-in demo" in result.stderr


def test_a_shape_runs_with_random_weights() -> None:
    options = ("--shape", "lfm2-8b-a1b", "--layers", "1", "--bits", "2")
    result = run(*options, "-p", "3", "-g", "1", "-n", "1", "--json")
    value = json.loads(result.stdout)
    assert (value["shape"], value["layers"], value["bits"]) == ("lfm2-8b-a1b", 1, 2)
    assert "lfm2-8b-a1b, 1 layers of random weights in 2 bits" in bench._table(value)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_each_row_of_a_batch_goes_as_it_would_alone(model_type: str) -> None:
    model = fuse(tiny(model_type))
    prompts = tokens(3, 11)
    cache = model.make_cache()
    rows = list(decode_rows(model, prefill_rows(model, prompts, cache, step_size=4), cache, limit=6))
    for row, prompt in enumerate(prompts.tolist()):
        cache = model.make_cache()
        logits = prefill(model, prompt, cache, step_size=4)
        alone = [token for token, _ in decode(model, logits, cache, make_sampler(SamplingOptions()), limit=6)]
        assert [step[row] for step in rows] == alone


@pytest.mark.parametrize("batch", [1, 2])
def test_a_trial_runs_the_prompt_and_as_many_steps_as_it_counts(batch: int) -> None:
    _, cache = run_trial(tiny(), tokens(batch, 7), 5, 3)
    assert (cache.offset, cache.batch_size) == (12, batch)


def cache_of(model: Any, batch: int = 1, length: int = 20) -> Any:
    cache = model.make_cache()
    model(tokens(batch, length), cache=cache)
    mx.eval(cache.arrays)
    return cache


def test_a_step_that_takes_every_expert_and_a_tied_head_reads_every_weight() -> None:
    model = tiny(num_experts_per_tok=6, tie_word_embeddings=True)
    assert bytes_per_token(model, cache_of(model), 20).weights == nbytes(model)


def test_without_a_tied_head_one_row_of_the_embeddings_is_read() -> None:
    model = tiny(num_experts_per_tok=6)
    table = nbytes(model, "embed_tokens")
    assert bytes_per_token(model, cache_of(model), 20).weights == nbytes(model) - table + table // 40


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_experts_that_are_not_chosen_are_not_read(model_type: str, fused: bool) -> None:
    def read(chosen: int) -> int:
        model = tiny(model_type, num_experts_per_tok=chosen)
        return bytes_per_token(fuse(model) if fused else model, cache_of(model), 20).weights

    one_expert = 3 * 3 * 32 * 16 * 4  # in each of three sparse layers
    assert read(2) - read(1) == read(6) - read(5) == one_expert


def test_rows_share_a_steps_weights_but_not_their_caches() -> None:
    model = tiny(num_experts_per_tok=6, tie_word_embeddings=True)
    one, two = (bytes_per_token(model, cache_of(model, batch), 20) for batch in (1, 2))
    assert two.weights == one.weights // 2
    assert two.cache == one.cache


def test_two_rows_choose_more_experts_than_one_and_fewer_than_twice_as_many() -> None:
    model = tiny()
    one, two = (bytes_per_token(model, cache_of(model, batch), 20).weights * batch for batch in (1, 2))
    assert one < two < 2 * one


def test_a_sliding_layer_reads_its_window_and_a_full_one_everything() -> None:
    column = 2 * 2 * 8 * 4  # keys and values, two heads of 8 in float32
    sliding, full = (tiny(layer_types=[f"{kind}_attention"] * 4) for kind in ("sliding", "full"))
    assert bytes_per_token(sliding, cache_of(sliding), 20).cache == 4 * 8 * column
    assert bytes_per_token(full, cache_of(full), 20).cache == 4 * 20 * column


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-p", "0"], "prompt_tokens is 0: expected 1 or more"),
        (["-g", "-3"], "generation_tokens is -3"),
        (["-b", "0"], "batch_size is 0"),
        (["-n", "0"], "num_trials is 0"),
        (["--prefill-step-size", "0"], "prefill_step_size is 0"),
        (["-p", "500", "-g", "13"], "513 tokens: expected 512 at most, the model's context"),
        (["--model", "demo", "--revision", "main"], "no revisions"),
        (["--model", "no-such"], "no-such"),
        (["--shape", "trinity-nan"], "expected one of trinity-nano"),
        (["--shape", "trinity-nano", "--layers", "57"], "expected 1 to 56"),
        (["--shape", "trinity-nano", "--bits", "7"], "bits is 7: expected one of 2, 3, 4, 5, 6, 8, 16"),
        (["--shape", "trinity-nano", "-p", "200000"], "expected 131072 at most"),
    ],
)
def test_nonsense_is_refused_in_one_line(arguments: list[str], words: str, model: str) -> None:
    named = arguments if "--model" in arguments or "--shape" in arguments else ["--model", model, *arguments]
    result = run(*named)
    assert result.exit_code == 1
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--model", "demo", "--shape", "trinity-nano"],
        ["--layers", "2"],
        ["--bits", "4"],
        ["--shape", "trinity-nano", "--revision", "main"],
        ["--trust-remote-code", "x"],
    ],
)
def test_options_that_do_not_go_together_are_wrong_usage(arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2


def test_a_copy_is_measured_and_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    before = mx.get_active_memory()
    assert device.copy_bandwidth(1 << 16) > 0
    assert mx.get_active_memory() == before


@pytest.mark.parametrize(
    "arguments",
    [
        ("--shape", "trinity-large"),
        ("--shape", "trinity-nano", "--bits", "16"),
        (
            "--shape",
            "trinity-nano",
            "-b",
            "300",
        ),  # the weights fit, so many caches do not
    ],
)
def test_a_shape_that_does_not_fit_is_refused_before_it_is_made(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "memory", lambda: device.Memory(8 << 30, 5_000_000_000))
    result = run(*arguments)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith(f"error: {arguments[1]} needs ")
    assert "5.0 GB" in result.stderr


def test_a_report_of_several_hosts_has_hops_and_no_name_address_or_path(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "home" / "small", num_hidden_layers=8)
    hosts = tmp_path / "hosts.json"
    hosts.write_text(json.dumps([{"ssh": "localhost", "ips": ["127.0.0.1"]}] * 2))
    sizes = ("--prompt-tokens", "8", "--generation-tokens", "2", "--num-trials", "1")
    command = [sys.executable, "-m", "afmoe_mlx", "bench", "--model", str(folder), "--hosts", str(hosts), "--json"]
    text = subprocess.run([*command, *sizes], stdout=subprocess.PIPE, text=True, check=True).stdout
    report = json.loads(text)
    assert report["model"] == "small"
    assert sum(report["hosts"]["layers"]) == 8
    assert min(report["hosts"]["hop_seconds"], report["hosts"]["sum_seconds"], report["generation_tps"]) > 0
    assert not [word for word in ("localhost", "127.0.0.1", str(tmp_path)) if word in text]
