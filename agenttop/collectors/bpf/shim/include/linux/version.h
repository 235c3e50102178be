/* SPDX-License-Identifier: Dual MIT/GPL */
/* BCC asks for it; nothing of ours depends on a version. */
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))
#define LINUX_VERSION_CODE KERNEL_VERSION(5, 15, 0)
