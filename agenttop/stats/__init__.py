"""Arithmetic on histograms and samples: no I/O, no agents."""
