"""What this machine can measure, and what would unlock the rest."""
