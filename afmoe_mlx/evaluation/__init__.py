"""A model's quality: perplexity, KL divergence from a reference, the experts chosen, the error of each weight."""

from .evaluation import Evaluation
from .pipeline import DEFAULT_TEXT, evaluate

__all__ = ["DEFAULT_TEXT", "Evaluation", "evaluate"]
