"""Adapters: what fine-tuning has learned, beside the weights of the model that it began with."""
