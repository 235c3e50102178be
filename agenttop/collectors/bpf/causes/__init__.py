"""What a stage's time went to: one pair of files per family."""
