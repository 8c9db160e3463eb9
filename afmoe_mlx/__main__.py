"""`python -m afmoe_mlx`."""

from .cli import main

main()
