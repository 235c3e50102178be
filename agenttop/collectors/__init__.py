"""One file per thing measured; bpf/ holds the kernel side."""
