"""The commands that are typed with a slash before them."""
