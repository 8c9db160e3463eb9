"""What a model's card recommends holds where its files say nothing."""

import json
from pathlib import Path
from typing import Any

import pytest

from afmoe_mlx.checkpoint.names import MODEL_NAMES
from afmoe_mlx.generation.sampling import SamplingOptions
from afmoe_mlx.models.shapes import SHAPES, shape
from afmoe_mlx.tokenizer import Tokenizer
from afmoe_mlx.tokenizer.recommended import RECOMMENDED, SAMPLING, with_recommended
from helpers.tiny_tokenizers import byte_level, save

CARDS: dict[str, dict[str, float]] = {
    "trinity-mini": {"temperature": 0.15, "top_p": 0.75, "top_k": 50, "min_p": 0.06},
    "lfm2-8b-a1b": {"temperature": 0.3, "min_p": 0.15, "repetition_penalty": 1.05},
    "lfm2-24b-a2b": {"temperature": 0.1, "top_k": 50, "repetition_penalty": 1.05},
    "lfm2.5-8b-a1b": {"temperature": 0.2, "top_k": 80, "repetition_penalty": 1.05},
}
CHAT = {"chat_template": "{{ messages }}"}


@pytest.mark.parametrize("name", SHAPES)
def test_a_published_model_gets_what_its_own_card_says(name: str) -> None:
    assert with_recommended({}, shape(name)) == CARDS.get(name, {})


def test_every_recommendation_is_of_a_published_model_and_can_be_sampled_with() -> None:
    assert len(RECOMMENDED) == len(CARDS)
    assert CARDS.keys() <= {row.name for row in MODEL_NAMES}
    for values in RECOMMENDED.values():
        context = {"repetition_context_size": 0} if "repetition_penalty" in values else {}  # all tokens, as of a file
        assert SamplingOptions.from_generation_config(values) == SamplingOptions(**values, **context)


@pytest.mark.parametrize("key", SAMPLING)
def test_what_the_file_says_of_sampling_is_all_that_holds(key: str) -> None:
    said = {key: False if key == "do_sample" else 1}
    assert with_recommended(said, shape("trinity-mini")) == said


@pytest.mark.parametrize("key", SAMPLING)
def test_a_null_says_nothing(key: str) -> None:
    found = with_recommended({key: None, "eos_token_id": 3}, shape("trinity-mini"))
    assert found.items() >= (CARDS["trinity-mini"] | {"eos_token_id": 3}).items()


@pytest.mark.parametrize("changed", [{"vocab_size": 40}, {"num_experts": [128]}, {"model_type": None}])
def test_another_model_gets_nothing(changed: dict[str, Any]) -> None:
    assert with_recommended({}, shape("trinity-mini") | changed) == {}


@pytest.mark.parametrize("chats", [True, False])
def test_a_folders_tokenizer_carries_it_unless_it_is_a_base_model(tmp_path: Path, chats: bool) -> None:
    save(tmp_path, byte_level(), config=shape("trinity-mini"), tokenizer_config=CHAT if chats else {})
    assert Tokenizer.from_folder(tmp_path).generation_config == (CARDS["trinity-mini"] if chats else {})
    (tmp_path / "generation_config.json").write_text(json.dumps({"do_sample": False}))
    assert Tokenizer.from_folder(tmp_path).generation_config == {"do_sample": False}
