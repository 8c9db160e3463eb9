"""The conversation with a model: messages, what is cached of them, settings, and the model itself."""
