"""Samples in, Snapshots out."""
