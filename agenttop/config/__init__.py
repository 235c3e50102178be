"""The files that people write, and where they are."""
