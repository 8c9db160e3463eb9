"""How good a model is, and how far from another it came from: perplexity, divergence, choice of experts, weights."""

from .evaluation import Evaluation
from .pipeline import DEFAULT_TEXT, evaluate

__all__ = ["DEFAULT_TEXT", "Evaluation", "evaluate"]
