"""Measurements of speed, memory and accuracy; ``make bench`` runs them all.

Nothing else should run beside them. Whatever is compared is run in turns in
one go, and medians over the rounds are reported with their spread.
"""
