"""The vocabulary and the typed data: what travels and what is shown. Computes nothing."""
