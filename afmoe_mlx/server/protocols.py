"""The protocols that are spoken: every `Endpoint`."""

from . import anthropic, openai, responses

ENDPOINTS = (*openai.ENDPOINTS, *responses.ENDPOINTS, *anthropic.ENDPOINTS)
