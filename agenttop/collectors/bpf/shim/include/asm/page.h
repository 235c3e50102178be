/* SPDX-License-Identifier: Dual MIT/GPL */
/* BCC includes it; its own virtual headers hold what is needed. */
