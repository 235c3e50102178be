"""What the kernel says in /proc and /sys, and system calls; standard library only."""
