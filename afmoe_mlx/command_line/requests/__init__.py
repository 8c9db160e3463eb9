"""What each command can be asked: a dataclass whose fields are its arguments and options.

`command_line.request` makes Typer's function of one, so that a parameter stands in one list. Importing these costs
Typer alone: what reads them is imported when a command runs.
"""
