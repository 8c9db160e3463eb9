"""The commands, one file each with a function `run`; `cli` reads their arguments."""
