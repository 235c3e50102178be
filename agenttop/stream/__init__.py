"""How Samples travel: through a socket or a file, in the same frames."""
