/* SPDX-License-Identifier: Dual MIT/GPL */
/*
 * The types that BCC's own prelude and our programs use, in place of kernel
 * headers: those of another kernel compile and then read wrong fields, and
 * many machines have none for the kernel they run.
 */
#pragma once

typedef unsigned char __u8;
typedef signed char __s8;
typedef unsigned short __u16;
typedef short __s16;
typedef unsigned int __u32;
typedef int __s32;
typedef unsigned long long __u64;
typedef long long __s64;

typedef __u8 u8;
typedef __s8 s8;
typedef __u16 u16;
typedef __s16 s16;
typedef __u32 u32;
typedef __s32 s32;
typedef __u64 u64;
typedef __s64 s64;

typedef __u16 __le16;
typedef __u16 __be16;
typedef __u32 __le32;
typedef __u32 __be32;
typedef __u64 __le64;
typedef __u64 __be64;
typedef __u16 __sum16;
typedef __u32 __wsum;

typedef _Bool bool;
typedef int pid_t;
typedef int clockid_t;
typedef unsigned int gfp_t;
typedef unsigned int dev_t;
typedef unsigned int uid_t;
typedef unsigned int gid_t;
typedef unsigned short umode_t;
typedef unsigned long size_t;
typedef unsigned long uintptr_t;
typedef long ssize_t;
typedef long long loff_t;
typedef long long ktime_t;
typedef unsigned long long sector_t;
typedef __u64 __aligned_u64 __attribute__((aligned(8)));

struct pt_regs;

#define true 1
#define false 0
#ifndef NULL
#define NULL ((void *)0)
#endif
#define __always_inline inline __attribute__((always_inline))
#define __aligned(x) __attribute__((aligned(x)))
#define __packed __attribute__((packed))
#define __bitwise
#define __user
#define __percpu
