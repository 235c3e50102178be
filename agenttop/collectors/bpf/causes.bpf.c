/* SPDX-License-Identifier: Dual MIT/GPL */
/*
 * Causes: what a part of a step's stage was spent on.
 *
 * The thread gathers them while the step lasts; its end adds them to the
 * agent's. The programs that see them happen (causes_*.bpf.c) are loaded later
 * and attached only while somebody wants them: without them a step pays for
 * one test of a word.
 *
 * Causes may lie in one another (reclaim in a page fault): each has its whole
 * time, and explained_ns has each moment once.
 */

#if TASK_STORAGE
static __always_inline void causes_reset(struct thread *t)
{
	t->caused = 0;
	t->cause_open = 0;
}

/* The step ends. Runs with preemption off. */
static __always_inline void causes_fold(struct thread *t, u32 slot, u32 row)
{
	u32 caused = t->caused, i;
	struct cause_hist *h;
	struct cause_row *r;

	if (!caused)
		return;
	r = cause_rows.lookup(&row);
	h = (void *)cause_hist.lookup(&slot);
	if (!r || !h)
		return;
	r->seq++;
	barrier();
	r->explained_ns += t->explained_ns;
#pragma clang loop unroll(disable)
	for (i = 0; i < NR_CAUSES; i++) {
		if (!(caused & 1U << i))
			continue;
		r->steps[i]++;
		r->events[i] += t->cause_events[i];
		r->ns[i] += t->cause_ns[i];
		__sync_fetch_and_add(&h->bucket[i][bucket_of(t->cause_ns[i]) >> 1], 1);
	}
	barrier();
	r->seq++;
}

/* Is the thread where its causes count? */
static __always_inline int in_compute(struct thread *t)
{
#if LEVEL_FULL
	return t->enter && t->exit;
#else
	return t->enter && t->in;
#endif
}

/* Begun anew where its end was not seen. */
static __always_inline void cause_begin(struct thread *t, u32 cause, u64 now)
{
	if (!(t->cause_open & ~(1U << cause)))
		t->explained_since = now;
	t->cause_open |= 1U << cause;
	t->cause_since[cause] = now;
}

/* What began as @begun turns out to be @cause. */
static __always_inline void cause_end(struct thread *t, u32 begun, u32 cause,
				      u64 now)
{
	u64 ns = now - t->cause_since[begun];
	u32 zero = 0, *wanted;

	if (!(t->cause_open & 1U << begun))
		return;
	t->cause_open &= ~(1U << begun);
	wanted = cause_wanted.lookup(&zero);
	if (!wanted || !(*wanted & 1U << cause))
		return;
	if (!t->caused)
		t->explained_ns = 0;
	if (!t->cause_open)
		t->explained_ns += now - t->explained_since;
	if (t->caused & 1U << cause) {
		t->cause_ns[cause] += ns;
		t->cause_events[cause]++;
	} else {
		t->caused |= 1U << cause;
		t->cause_ns[cause] = ns;
		t->cause_events[cause] = 1;
	}
}

static __always_inline int begin_here(u32 cause)
{
	struct thread *t = this_thread();

	if (t && in_compute(t))
		cause_begin(t, cause, bpf_ktime_get_ns());
	return 0;
}

static __always_inline int end_here(u32 begun, u32 cause)
{
	struct thread *t = this_thread();

	if (t && t->cause_open & 1U << begun)
		cause_end(t, begun, cause, bpf_ktime_get_ns());
	return 0;
}
#else
#define causes_reset(t)
#define causes_fold(t, slot, row)
#endif
