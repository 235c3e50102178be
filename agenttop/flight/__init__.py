"""The flight recorder and its trace."""
