"""One model on several machines, by layers, over MLX's own distributed layer."""
