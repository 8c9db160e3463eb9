"""What the commands share: how the command line is read, and what its options make ready."""
