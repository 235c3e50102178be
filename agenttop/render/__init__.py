"""A Snapshot as rows, text and JSON; no terminal."""
