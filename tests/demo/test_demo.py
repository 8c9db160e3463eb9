"""The model that comes with the package: a whole AFMoE that answers, declines, and is named when it is used."""

import json
import subprocess
import sys

import pytest

from afmoe_mlx import generate, load
from afmoe_mlx.api import DEMO
from afmoe_mlx.errors import InputError
from afmoe_mlx.models import CausalLM
from afmoe_mlx.tokenizer import Tokenizer
from helpers.command_line import invoke

Loaded = tuple[CausalLM, Tokenizer]


@pytest.fixture(scope="module")
def demo() -> Loaded:
    return load("demo")


def ask(demo: Loaded, question: str) -> str:
    prompt = demo[1].apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True)
    return generate(*demo, prompt, max_tokens=120, temperature=0)


def test_all_of_afmoe_is_in_it(demo: Loaded) -> None:
    config = json.loads((DEMO / "config.json").read_text())
    assert config["num_dense_layers"] >= 1
    assert set(config["layer_types"]) == {"sliding_attention", "full_attention"}
    assert config["num_shared_experts"] >= 1
    assert config["mup_enabled"]
    assert config["quantization"]["bits"] == 4
    biases = [
        layer.mlp.expert_bias[: config["num_experts"]] for layer in demo[0].model.layers if "expert_bias" in layer.mlp
    ]
    assert len(biases) == config["num_hidden_layers"] - config["num_dense_layers"]
    assert all(bias.std().item() > 0 for bias in biases)


def test_it_is_under_8_megabytes() -> None:
    assert sum(path.stat().st_size for path in DEMO.iterdir()) < 8_000_000


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ("What is AFMoE?", "Arcee"),
        ("what is MLX", "Apple"),
        ("how big is trinity nano?", "3.5 GB"),
        ("how do I convert trinity mini?", "afmoe-mlx convert"),
        ("What is a router?", "expert"),
        ("what is a KV cache?", "keys and values"),
        ("hello", "afmoe-mlx"),
        ("What is the capital of France?", "I "),
    ],
)
def test_it_answers_what_it_is_for_and_declines_the_rest(demo: Loaded, question: str, words: str) -> None:
    assert words in ask(demo, question)


def test_without_a_model_generate_uses_it_and_says_so_on_stderr() -> None:
    result = invoke(["generate", "--prompt", "What is AFMoE?", "--verbose", "False"])
    assert result.exit_code == 0
    assert "Arcee" in result.stdout
    assert "demo" in result.stderr
    assert "--model trinity-nano" in result.stderr
    assert result.stderr.count("\n") == 1


def test_named_it_is_used_without_a_word() -> None:
    arguments = ["generate", "--model", "demo", "--prompt", "What is AFMoE?", "--verbose", "False"]
    result = invoke(arguments)
    assert (result.exit_code, result.stderr) == (0, "")


def test_it_has_no_revisions() -> None:
    with pytest.raises(InputError, match="revision"):
        load("demo", revision="main")


def test_it_answers_on_stdin_without_the_hub() -> None:
    code = (
        "import sys, socket; socket.socket.connect = lambda *_: sys.exit('network')\n"
        "from afmoe_mlx.cli import app\n"
        "try: app(['chat'])\n"
        "finally: print('huggingface_hub' in sys.modules, file=sys.stderr)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, input="what is AFMoE?", capture_output=True, text=True)
    assert "Arcee" in done.stdout
    assert done.stderr.splitlines()[-1] == "False"
