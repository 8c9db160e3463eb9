"""`python convert.py --hf-path …` is `afmoe-mlx convert --hf-path …`."""

import sys

from afmoe_mlx.cli import app

if __name__ == "__main__":
    app(["convert", *sys.argv[1:]], prog_name="convert.py")
