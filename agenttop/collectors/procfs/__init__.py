"""One file per source under /proc and /sys."""
