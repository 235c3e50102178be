"""Randomised on and off trials of policies."""
