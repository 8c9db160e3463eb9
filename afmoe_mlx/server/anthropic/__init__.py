"""Anthropic's interface: messages, and how many tokens a prompt has.

forms: what requests and answers are made of; questions: what a request asks; answers: what it is told.
"""

from .endpoints import ENDPOINTS

__all__ = ["ENDPOINTS"]
