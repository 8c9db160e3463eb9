"""The commands, one file each; `cli` reads their arguments and calls them."""
