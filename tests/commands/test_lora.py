"""`afmoe-mlx lora`, from a folder of examples to an adapter that is used."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from afmoe_mlx import load
from afmoe_mlx.checkpoint import load_model
from afmoe_mlx.training.batches import Batch
from afmoe_mlx.training.group import Group
from afmoe_mlx.training.trainer import Trainer
from helpers import ROOT
from helpers.command_line import run
from helpers.lessons import write_rows
from helpers.pairs import quantized_folder
from helpers.tiny import tiny_folder, tokens

# What mlx-lm has no default for.
FOR_MLX_LM: dict[str, dict[str, Any]] = {
    "afmoe": {"layer_types": ["sliding_attention"] * 3 + ["full_attention"]},
    "lfm2_moe": {
        "norm_topk_prob": True,
        "use_expert_bias": True,
        "norm_eps": 1e-5,
        "conv_bias": False,
        "conv_L_cache": 3,
    },
}
FAST = ("--iters", "4", "--batch-size", "2", "--learning-rate", "1e-2", "--rank", "2", "--save-every", "2")


def chat(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


ROWS = [chat("hello there", "hi"), chat("a", "the answer is long, a b c d e f"), chat("who?", "me"), chat("x", "y")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("model"), num_hidden_layers=2)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for split in ("train", "valid", "test"):
        write_rows(tmp_path / "data" / f"{split}.jsonl", ROWS)
    return tmp_path / "data"


def lora(model: Path, *arguments: object) -> Any:
    return run("lora", "--model", str(model), *map(str, arguments))


def test_examples_become_an_adapter_that_lowers_their_loss_and_is_used(model: Path, data: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    result = lora(model, "--train", "--data", data, "--adapter-path", adapter, *FAST, "--test", "--mask-prompt")
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    losses = [float(line.split()[-1]) for line in lines if "validation loss" in line]
    assert losses[1] < losses[0]
    assert lines[-1].startswith("Test loss ")
    assert f"Wrote {adapter}. Try it: afmoe-mlx chat --model {model} --adapter-path {adapter}" in result.err
    names = {path.name for path in adapter.iterdir()}
    steps = {"0000002_adapters.safetensors", "0000004_adapters.safetensors"}
    assert names == {"adapters.safetensors", "adapter_config.json", "training_state.safetensors"} | steps
    plain, adapted = load(model)[0](tokens(1, 4)), load(model, adapter_path=adapter)[0](tokens(1, 4))
    assert mx.abs(plain - adapted).max().item() > 1e-3
    again = lora(model, "--test", "--data", data, "--adapter-path", adapter, "--mask-prompt", "--json")
    assert f"{json.loads(again.out)['test_loss']:.3f}" == lines[-1].split()[2].rstrip(",")


@pytest.mark.parametrize("kind", ["lora", "dora", "full"])
@pytest.mark.parametrize("model_type", ["afmoe", "lfm2_moe"])
def test_mlx_lm_reads_what_is_trained_alike(model_type: str, kind: str, data: Path, tmp_path: Path) -> None:
    from mlx_lm.utils import load_adapters
    from mlx_lm.utils import load_model as their_load

    folder = tiny_folder(tmp_path / "model", model_type, **FOR_MLX_LM[model_type])
    experts = ["--experts", "--router"] if kind == "lora" else []
    adapter = tmp_path / "adapter"
    options = ("--fine-tune-type", kind, *experts, "--num-layers", 3, "--learning-rate", "2e-3")
    result = lora(folder, "--train", "--data", data, "--adapter-path", adapter, *FAST, *options)
    assert result.code == 0, result.err
    ids = tokens(2, 12)
    theirs = load_adapters(their_load(folder)[0], str(adapter))
    theirs.eval()
    ours, _ = load(folder, adapter_path=adapter)
    assert mx.abs(ours(ids) - theirs(ids)).max().item() < 2e-5
    assert mx.abs(ours(ids) - load(folder)[0](ids)).max().item() > 1e-3


def test_a_quantized_model_is_trained_as_it_is(data: Path, tmp_path: Path) -> None:
    folder = quantized_folder(tmp_path / "model", "afmoe")
    before = (folder / "model.safetensors").read_bytes()
    adapter = tmp_path / "adapter"
    result = lora(folder, "--train", "--data", data, "--adapter-path", adapter, *FAST, "--grad-checkpoint")
    assert result.code == 0, result.err
    assert (folder / "model.safetensors").read_bytes() == before
    load(folder, adapter_path=adapter)
    refused = lora(folder, "--train", "--data", data, "--adapter-path", tmp_path / "b", "--fine-tune-type", "full")
    assert refused.code == 1
    assert refused.err.startswith("error: lm_head is quantized: full training needs plain weights")


def test_a_dry_run_lists_every_map_and_loads_and_writes_nothing(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("afmoe_mlx.commands.lora.load_model", None)
    adapter = tmp_path / "adapter"
    said = lora(model, "--dry-run", "--adapter-path", adapter, "--json")
    found = json.loads(said.out)
    assert not adapter.exists()
    names = {part["name"]: part["layers"] for part in found["trained"]}
    unfused = load_model(model, fuse=False)[0]
    assert names["self_attn.q_proj"] == 2
    assert not any(("experts." in name and "shared" not in name) or "router" in name for name in names)
    assert found["parameters"] == sum(part["parameters"] for part in found["trained"])
    with_experts = json.loads(lora(model, "--dry-run", "--experts", "--router", "--json").out)
    extra = {part["name"] for part in with_experts["trained"]} - names.keys()
    assert extra == {"mlp.router.gate", *(f"mlp.experts.{name}_proj" for name in ("gate", "up", "down"))}
    assert "in all" in lora(model, "--dry-run").out
    held = sum(array.nbytes for array in dict(tree_flatten(unfused.parameters())).values())
    assert found["memory"]["weights"] == held


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--target", "q_prj"], "no map is called q_prj: expected some of mlp.down_proj, "),
        (["--num-layers", "9"], "num_layers is 9: expected 1 to 2, the model's layers, or -1 for all"),
        (["--rank", "0"], "rank is 0: expected 1 or more"),
        (["--dropout", "1"], "dropout is 1.0: expected 0 or more, and below 1"),
        (["--learning-rate", "0"], "learning_rate is 0.0: expected more than 0"),
        (["--batch-size", "0"], "batch_size is 0: expected 1 or more"),
        (["--max-seq-length", "5", "--mask-prompt"], "train.jsonl:1: the prompt alone has 5 tokens or more"),
        (["--optimizer-config", '{"beta": 1}'], "optimizer_config.adam: "),
        (["--lr-schedule", '{"name": "up"}'], "lr_schedule is 'up' of None: expected one of cosine_decay, "),
        (["--resume-adapter-file", "none"], "none: no such file: expected the adapters.safetensors of a training"),
        (["--fine-tune-type", "dora", "--experts"], "model.layers.1.mlp.experts.down_proj: DoRA is not for routed"),
        (["--fine-tune-type", "full", "--experts"], "full training takes all weights of its layers"),
        (["--target", "q_proj", "--experts"], "the maps to train are named one by one: name those of experts or"),
        (["--learning-rate", "nan"], "learning_rate is nan: expected more than 0"),
        (["--seed", "-1"], "seed is -1: expected 0 or more"),
        (["--optimizer", "adamw", "--optimizer-config", '{"weight_decay": "x"}'], "optimizer_config.adamw: "),
        (["--lr-schedule", '{"name": "cosine_decay", "arguments": ["x", 3]}'], "lr_schedule: "),
        (["--data", __file__], f"{__file__}: is a file: expected the folder, with train.jsonl in it"),
        (["--adapter-path", __file__], f"{__file__}: is a file: expected a folder for the adapter"),
        (["--adapter-path", f"{__file__}/x"], f"{__file__}/x: cannot be written: "),
        (["--json"], "--json is for --dry-run and --test"),
        (["--test", "--test-batches", "0"], "--test-batches is 0: expected 1 or more, or -1 for all"),
    ],
)
def test_what_cannot_be_done_is_a_line_and_leaves_no_adapter(
    model: Path, data: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    result = lora(model, "--train", "--data", data, "--adapter-path", tmp_path / "adapter", *arguments)
    assert result.code in (1, 2)
    error = result.err.splitlines()[-1]
    assert error.startswith(f"error: {said}")
    assert not (tmp_path / "adapter" / "adapters.safetensors").exists()


def test_an_adapter_that_is_there_is_not_replaced_unasked(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = (model, "--train", "--data", data, "--adapter-path", tmp_path / "adapter", *FAST)
    assert lora(*train).code == 0
    before = (tmp_path / "adapter" / "adapters.safetensors").read_bytes()
    refused = lora(*train)
    assert refused.code == 1
    assert "an adapter is there: --resume goes on with it, --overwrite replaces it" in refused.err
    assert lora(*train, "--dry-run").code == 0
    for wrong in (["--optimizer-config", '{"beta": 1}'], ["--test", "--mask-prompt", "--max-seq-length", 7]):
        write_rows(data / "test.jsonl", [chat("a longer question", "hi")])
        assert lora(*train, "--overwrite", *wrong).code == 1
        assert (tmp_path / "adapter" / "adapters.safetensors").read_bytes() == before
    done = lora(*train, "--resume")
    assert done.code == 1
    assert "trained for 4 batches already: raise --iters to go on" in done.err
    with monkeypatch.context() as patch:
        patch.setattr(Group, "sum", lambda self, array: array + 2)  # of another process, that is further
        assert (
            "adapter: not the same on all machines: copy it from the first to the others"
            in lora(*train, "--resume").err
        )
    longer = lora(*train, "--resume", "--iters", 6)
    assert longer.code == 0, longer.err
    assert "     6: training loss" in longer.out
    assert "     2: training loss" not in longer.out
    (tmp_path / "adapter" / "training_state.safetensors").rename(tmp_path / "state")
    assert "an adapter without the state of a training: --overwrite replaces it" in lora(*train, "--resume").err
    assert lora(*train, "--overwrite").code == 0
    assert not (tmp_path / "adapter" / "0000006_adapters.safetensors").exists()
    assert (tmp_path / "adapter" / "adapters.safetensors").read_bytes() == before


def test_an_adapter_of_peft_is_not_replaced_unasked_and_is_tested(model: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    arguments = (model, "--data", data, "--adapter-path", tmp_path)
    assert "an adapter is there" in lora(*arguments, "--train", *FAST).err
    assert "r is None, lora_alpha None" in lora(*arguments, "--test").err
    assert lora(*arguments, "--train", *FAST, "--overwrite").code == 0
    assert not (tmp_path / "adapter_model.safetensors").exists()


def test_an_interrupted_training_says_how_to_go_on(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = Trainer.learn

    def interrupted(self: Trainer, batch: Batch, **options: Any) -> Any:
        if len(steps) == 3:
            raise KeyboardInterrupt
        steps.append(batch)
        return taken(self, batch, **options)

    steps: list[Batch] = []
    monkeypatch.setattr(Trainer, "learn", interrupted)
    train = (model, "--train", "--data", data, "--adapter-path", tmp_path / "adapter", *FAST)
    result = lora(*train)
    assert result.code == 130
    said = "Interrupted. What 2 batches gave is kept: the same command with --resume goes on there."
    assert result.err.splitlines()[-1] == said
    assert lora(*train, "--overwrite").err.splitlines()[-1] == "Interrupted. Nothing was saved yet, see --save-every."
    steps.clear()
    assert "the same command with --resume in place of --overwrite goes on there." in lora(*train, "--overwrite").err


def test_examples_that_are_cut_are_told(model: Path, data: Path, tmp_path: Path) -> None:
    result = lora(model, "--dry-run", "--data", data, "--max-seq-length", 50)
    assert result.code == 0
    assert "1 of 4 train examples have more than 50 tokens and are cut there, see --max-seq-length." in result.err


def test_what_does_not_fit_is_refused_before_it_is_loaded(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from afmoe_mlx import device

    memory = device.Memory(total=1 << 30, usable=100_000)
    monkeypatch.setattr(device, "memory", lambda: memory)
    train = (model, "--train", "--data", data, "--adapter-path", tmp_path / "adapter", *FAST)
    refused = lora(*train)
    assert refused.code == 1
    assert "this machine has 0.1 MB for it: take a smaller --batch-size" in refused.err
    assert lora(*train, "--force").code == 0


def test_a_yaml_file_of_mlx_lm_gives_the_options_and_what_is_typed_wins(
    model: Path, data: Path, tmp_path: Path
) -> None:
    config = tmp_path / "lora.yaml"
    config.write_text(
        f"model: {model}\ntrain: true\ndata: {data}\niters: 3\nbatch_size: 2\nlearning_rate: 1e-2\nreport_to: null\n"
        "optimizer: adamw\noptimizer_config:\n  adamw:\n    weight_decay: 0.1\n"
        "lora_parameters:\n  keys: [self_attn.q_proj]\n  rank: 2\n  scale: 10.0\n  dropout: 0.1\n"
        "lr_schedule:\n  name: cosine_decay\n  warmup: 1\n  arguments: [1e-2, 3, 1e-4]\n"
    )
    result = run("lora", "-c", str(config), "--adapter-path", str(tmp_path / "adapter"), "--iters", "2")
    assert result.code == 0, result.err
    written = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert written["iters"] == 2
    assert written["lora_parameters"] == {"rank": 2, "scale": 10.0, "dropout": 0.1, "keys": ["self_attn.q_proj"]}
    assert written["optimizer_config"] == {"adamw": {"weight_decay": 0.1}}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("width: 3", "width: lora has no option of this name"),
        ("hf_dataset: {path: x}", "hf_dataset: --data takes a dataset on the Hub"),
        ("iters: [1]", "iters is [1]: expected what --iters takes"),
        ("train: 7", "train is 7: expected what --train takes"),
        ("iters: many", "iters is 'many': 'many' is not a valid int."),
        ("lora_parameters: 3", "lora_parameters: expected rank, scale, dropout, keys, found 3"),
        ("lora_parameters: {alpha: 16}", "lora_parameters: expected rank, scale, dropout, keys, found {'alpha': 16}"),
        ("- x", "expected options by their names, such as iters: 600"),
    ],
)
def test_what_no_option_takes_is_refused_in_a_yaml_file(tmp_path: Path, line: str, said: str) -> None:
    config = tmp_path / "lora.yaml"
    config.write_text(line + "\n")
    refused = run("lora", "-c", str(config))
    assert refused.code == 1
    assert refused.err == f"error: {config}: {said}\n"


def test_the_guides_python_trains(model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "tuning.md").read_text(encoding="utf-8")
    code = next(block for block in page.split("```python\n")[1:] if "start(model" in block).split("```")[0]
    code = code.replace("trinity-nano", str(model)).replace("iters=600", "iters=2")
    monkeypatch.chdir(data.parent)
    exec(compile(code, "docs/tuning.md", "exec"), {})
    load(model, adapter_path=data.parent / "adapters")


def test_two_processes_learn_what_one_does(model: Path, data: Path, tmp_path: Path) -> None:
    ports = []
    for _ in range(2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(free.getsockname()[1])
    hostfile = tmp_path / "hosts.json"
    hostfile.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in ports]))
    train = ["lora", "--model", str(model), "--train", "--data", str(data), *FAST, "--learning-rate", "1e-3"]
    command = [sys.executable, "-m", "afmoe_mlx", *train, "--adapter-path", str(tmp_path / "two")]
    programs = [
        subprocess.Popen(
            command,
            env=os.environ | {"MLX_RANK": str(rank), "MLX_HOSTFILE": str(hostfile)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    told = [program.communicate(timeout=120) for program in programs]
    assert [program.returncode for program in programs] == [0, 0], told
    assert told[1][0] == ""
    assert run(*train, "--adapter-path", str(tmp_path / "one")).code == 0
    one, two = (mx.load(str(tmp_path / name / "adapters.safetensors")) for name in ("one", "two"))
    assert max(mx.abs(one[name] - two[name]).max().item() for name in one) < 1e-5
    losses = [line for line in told[0][0].splitlines() if "loss" in line]
    assert losses
