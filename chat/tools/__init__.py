"""Tools: what a model may call, whether it may, and what comes of it."""
