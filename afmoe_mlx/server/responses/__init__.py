"""OpenAI's Responses, of which nothing is stored.

forms: what requests and answers are made of; questions: what a request asks; items, answers: what it is told.
"""

from .endpoints import ENDPOINTS

__all__ = ["ENDPOINTS"]
