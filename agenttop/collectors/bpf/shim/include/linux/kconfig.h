/* SPDX-License-Identifier: Dual MIT/GPL */
#define CONFIG_BPF_SYSCALL 1
