"""Numbers, durations and hostile names as text."""
