"""The conversation with a model: its messages, what is remembered of them, and the model that answers."""
