"""What several tests share: tiny models and tokenizers, fakes, goldens and the script that makes them."""

from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
