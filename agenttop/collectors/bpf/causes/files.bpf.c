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

/*
 * Calls that look files up, list or name them. One that had to wait for a disk
 * is cold as well, as a whole: it slept in a wait for I/O (in_iowait, what
 * vmstat's wa and delay accounting's blkio go by), or had asked a disk for
 * something itself (block_bio_queue) and slept: XFS waits for its own buffers
 * as for anything else.
 */
int p_cause_enter(args_t ctx)
{
	struct thread *t = this_thread();

	if (t && in_compute(t) && call_of((u32)ctx[1]) == CALL_METADATA) {
		t->asked = 0;
		t->cause_open &= ~(1U << CAUSE_COLD_METADATA);
		cause_begin(t, CAUSE_FILE_METADATA, bpf_ktime_get_ns());
	}
	return 0;
}

int p_metadata_read(args_t ctx)
{
	struct thread *t = this_thread();

	/* REQ_OP_READ is 0. */
	if (t && t->cause_open & 1U << CAUSE_FILE_METADATA &&
	    !(KERNEL_U32(ctx[0], OFF_BIO_OPF) & 0xff))
		t->asked = 1;
	return 0;
}

static __always_inline int waits_for_io(void *task)
{
#if defined(BIT_IN_IOWAIT)
	u32 v;

	asm volatile("%0 = *(u8 *)(%1 + %2)"
		     : "=r"(v) : "r"(task), "i"(BIT_IN_IOWAIT / 8));
	return v >> BIT_IN_IOWAIT % 8 & 1;
#else
	return 0;
#endif
}

/* @task goes to sleep in such a call. */
static __always_inline void metadata_sleeps(struct thread *t, void *task)
{
	u32 cold = 1U << CAUSE_COLD_METADATA;

	if (t->cause_open & cold || !(causes_wanted() & cold) ||
	    !(t->asked || waits_for_io(task)))
		return;
	t->cause_open |= cold;
	t->cause_since[CAUSE_COLD_METADATA] = t->cause_since[CAUSE_FILE_METADATA];
}

int p_cause_exit(args_t ctx)
{
	struct thread *t = this_thread();
	u64 now;

	if (!t || !(t->cause_open & 1U << CAUSE_FILE_METADATA))
		return 0;
	now = bpf_ktime_get_ns();
	cause_end(t, CAUSE_FILE_METADATA, CAUSE_FILE_METADATA, now);
	cause_end(t, CAUSE_COLD_METADATA, CAUSE_COLD_METADATA, now);
	return 0;
}
