/* SPDX-License-Identifier: Dual MIT/GPL */
#include <linux/types.h>
