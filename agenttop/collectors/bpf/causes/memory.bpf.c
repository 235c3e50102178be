/* SPDX-License-Identifier: Dual MIT/GPL */
/*
 * Causes from memory management, in the thread that they hold up.
 *
 * A page fault begins with exceptions:page_fault_user, or page_fault_kernel
 * where the kernel touches the thread's memory for it. No tracepoint tells of
 * its end: the software events page-faults-min and -maj do, which perf counts
 * behind the fault's handling. Entering and leaving the exception itself lies
 * outside. A fault that ends in a signal has no end; the next one begins anew.
 *
 * Reclaim (vmscan) and compaction count where the thread does them itself,
 * because it, or its cgroup, is out of memory; what kswapd and kcompactd do
 * in the background does not.
 */

int p_page_fault_user(args_t ctx)
{
	return begin_here(CAUSE_MINOR_FAULT);
}

int p_page_fault_kernel(args_t ctx)
{
	/* perf tells nothing of faults at the kernel's own addresses. */
	return (s64)ctx[0] < 0 ? 0 : begin_here(CAUSE_MINOR_FAULT);
}

int p_minor_fault(args_t ctx)
{
	return end_here(CAUSE_MINOR_FAULT, CAUSE_MINOR_FAULT);
}

int p_major_fault(args_t ctx)
{
	return end_here(CAUSE_MINOR_FAULT, CAUSE_MAJOR_FAULT);
}

#define STALL_PROGRAMS(name, cause)					\
	int p_##name##_begin(args_t ctx)				\
	{								\
		return begin_here(cause);				\
	}								\
	int p_##name##_end(args_t ctx)					\
	{								\
		return end_here(cause, cause);				\
	}

STALL_PROGRAMS(direct_reclaim, CAUSE_RECLAIM)
STALL_PROGRAMS(memcg_reclaim, CAUSE_RECLAIM)
STALL_PROGRAMS(compaction, CAUSE_COMPACTION)
