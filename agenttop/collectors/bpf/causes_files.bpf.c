/* SPDX-License-Identifier: Dual MIT/GPL */
/*
 * Causes from files. page_cache_sync_ra fires where a read, or a page fault,
 * does not find its page; the read ends with the switch-in that follows
 * (causes_switch.bpf.c). Faults have a cause of their own.
 */

int p_page_cache_miss(args_t ctx)
{
	struct thread *t = this_thread();
	void *regs;

	if (!t || !in_compute(t))
		return 0;
	regs = (void *)bpf_task_pt_regs(current_task());
	if (call_of((u32)KERNEL_U64(regs, OFF_REGS_NR)) == CALL_READ)
		cause_begin(t, CAUSE_PAGE_CACHE_MISS, bpf_ktime_get_ns());
	return 0;
}

/*
 * mm_filemap_get_pages, of newer kernels: the read has its pages. A disk may be done
 * before the thread has gone to sleep; then no switch tells of the read's end.
 */
int p_page_cache_got(args_t ctx)
{
	return end_here(CAUSE_PAGE_CACHE_MISS, CAUSE_PAGE_CACHE_MISS);
}

int p_cause_enter(args_t ctx)
{
	struct thread *t = this_thread();

	if (t && in_compute(t) && call_of((u32)ctx[1]) == CALL_METADATA)
		cause_begin(t, CAUSE_FILE_METADATA, bpf_ktime_get_ns());
	return 0;
}

int p_cause_exit(args_t ctx)
{
	return end_here(CAUSE_FILE_METADATA, CAUSE_FILE_METADATA);
}
