"""Knobs, their journal and their guardian."""
