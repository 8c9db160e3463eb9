"""The `Service` of a model: questions become prompts, and rows of a batch that a thread of its own runs."""
