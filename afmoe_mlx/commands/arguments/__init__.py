"""The arguments of the commands, a file a group: each reads them, imports what it needs and makes one call."""
