"""Checkpoints of other quantizers are measured, and calibrated conversions are made of them, as of any."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from afmoe_mlx import convert
from afmoe_mlx.calibration import Calibration
from afmoe_mlx.evaluation import evaluate
from helpers import foreign

WORDS = ["[UNK]", "hello", "to", "the", "world", "it", "says"]


@pytest.mark.parametrize("name", ["fp8_block", "modelopt_nvfp4", "w4a16_asymmetric", "w8a16"])
def test_they_are_a_reference_and_a_source_of_calibrated_weights(tmp_path: Path, name: str) -> None:
    source, text = tmp_path / "source", tmp_path / "text.txt"
    source.mkdir()
    foreign.write_golden(source, name)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(source / "tokenizer.json"))
    text.write_text("hello to the world it says " * 20)
    plain = convert(source, tmp_path / "plain", dequantize=True)
    assert evaluate(source, reference=plain, text=text, sequence_length=33).kl_mean < 1e-4
    calibrate = Calibration(text=text, tokens=60, method="scales")
    fewer = convert(source, tmp_path / "fewer", bits=3, group_size=32, calibrate=calibrate)
    found = evaluate(fewer, reference=source, text=text, sequence_length=33)
    assert 1e-4 < found.kl_mean < 1
