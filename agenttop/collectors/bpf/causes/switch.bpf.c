/* SPDX-License-Identifier: Dual MIT/GPL */
/*
 * Causes that show at a switch: those that the waker has told of
 * (causes_wake.bpf.c), and those for which a thread goes off the CPU in compute: a lock, its cgroup's
 * CPU quota, a page that is not in the page cache.
 *
 * Runs behind the chain's own program at sched_switch, which has noted that
 * the thread went off (t->off), and why.
 */

/* Is it the quota of its cgroup that takes the CPU from the thread? */
static __always_inline int throttled(void *task)
{
#if defined(OFF_THROTTLED)
	u32 v;

	/* Since 6.18 throttled threads are taken off one by one. */
	asm volatile("%0 = *(u8 *)(%1 + %2)"
		     : "=r"(v) : "r"(task), "i"(OFF_THROTTLED));
	return v & 0xff;
#elif defined(OFF_CFS_RQ) && defined(OFF_THROTTLE_COUNT)
	u64 queue = KERNEL_U64(task, OFF_CFS_RQ);

	return queue && KERNEL_U32(queue, OFF_THROTTLE_COUNT);
#else
	return 0;
#endif
}

static __always_inline void goes_off(struct thread *t, void *task)
{
	u32 missed = 1U << CAUSE_PAGE_CACHE_MISS;
	u64 off = t->off;
	int call;

	if (t->off_part == PART_PREEMPTED) {
		if (throttled(task)) {
			cause_begin(t, CAUSE_THROTTLED, off);
			t->cause_off |= 1U << CAUSE_THROTTLED;
		}
		return;
	}
	call = call_of((u32)KERNEL_U64((void *)bpf_task_pt_regs(task),
				       OFF_REGS_NR));
	if (t->cause_open & 1U << CAUSE_FILE_METADATA)
		metadata_sleeps(t, task);
	/* Whether it was a disk, the wake-up tells. */
	t->cause_since[CAUSE_BLOCK_IN_COMPUTE] = off;
	t->cause_off |= 1U << CAUSE_BLOCK_IN_COMPUTE;
	if (call == CALL_FUTEX) {
		cause_begin(t, CAUSE_LOCK, off);
		t->cause_off |= 1U << CAUSE_LOCK;
	}
	if (call != CALL_READ) {
		/* What was read ahead was there in time after all. */
		t->cause_open &= ~missed;
	} else if ((t->caused | t->cause_open) & missed) {
		/* Pages that were read ahead behind the missed one. */
		if (!(t->cause_open & missed))
			cause_begin(t, CAUSE_PAGE_CACHE_MISS, off);
		t->cause_off |= missed;
	}
}

static __always_inline void came_on(struct thread *t)
{
	u64 now = bpf_ktime_get_ns();
	u32 off = t->cause_off;

	t->cause_off = 0;
	if (off & 1U << CAUSE_BLOCK_IN_COMPUTE && by_block(t)) {
		cause_begin(t, CAUSE_BLOCK_IN_COMPUTE,
			    t->cause_since[CAUSE_BLOCK_IN_COMPUTE]);
		cause_end(t, CAUSE_BLOCK_IN_COMPUTE, CAUSE_BLOCK_IN_COMPUTE, now);
	}
	if (off & 1U << CAUSE_THROTTLED)
		cause_end(t, CAUSE_THROTTLED, CAUSE_THROTTLED, now);
	if (off & 1U << CAUSE_LOCK)
		cause_end(t, CAUSE_LOCK, CAUSE_LOCK, now);
	if (off & 1U << CAUSE_PAGE_CACHE_MISS)
		cause_end(t, CAUSE_PAGE_CACHE_MISS, CAUSE_PAGE_CACHE_MISS, now);
}

int p_cause_switch(args_t ctx)
{
	void *prev = (void *)ctx[1], *next = (void *)ctx[2];
	struct finished *f = last_finished();
	struct ring_done *d = last_done();
	struct thread *t;

	if (f && f->at)
		finished_over(f);
	if (d && d->at)
		ring_over(d);
	t = thread_of(prev);
	if (t && t->folding)
		causes_fold(t);
	if (t && t->off && in_compute(t))
		goes_off(t, prev);
	t = thread_of(next);
	if (!t)
		return 0;
	if (t->cause_off)
		came_on(t);
	if (t->taken == t->seen)
		return 0;
	t->taken = t->seen;
	/* Of the wake-ups in one gate the last counts. */
	t->caused &= CAUSES_OF_COMPUTE;
	if (t->given.seq == t->seen)
		causes_take(t);
	return 0;
}
