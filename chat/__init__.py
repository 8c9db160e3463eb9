"""The terminal chat, installed as afmoe_mlx.chat."""
