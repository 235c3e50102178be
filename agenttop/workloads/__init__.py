"""Loops to see and to test with."""
