"""The self-test: whether this machine's device computes what the CPU and Transformers do."""
