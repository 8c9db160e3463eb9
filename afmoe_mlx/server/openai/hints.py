"""Fields of OpenAI's requests that change no answer here: they are accepted and ignored."""

HINTS = {
    "metadata": "labels of stored answers: none is stored",
    "moderation": "nothing is sent anywhere to be judged",
    "prediction": "would save time, and never changes an answer",
    "prompt_cache_key": "prefixes are found by their tokens",
    "prompt_cache_options": "prefixes are kept as `serve` was told",
    "prompt_cache_retention": "prefixes are kept as `serve` was told",
    "safety_identifier": "nobody is reported to",
    "service_tier": "there is one, first come, first served",
    "store": "no answer is stored",
    "user": "prefixes are kept apart by API key",
    "verbosity": "no model that is served here knows it: say it in the prompt",
}
"""Each with what becomes of it."""
