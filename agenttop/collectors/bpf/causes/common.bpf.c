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
	t->had_khz = 0;
}

/* The step ends; what it had is folded behind the chain's program (causes_fold.bpf.c). */
static __always_inline void causes_ended(struct thread *t)
{
	t->folding = t->caused | t->had_khz << CAUSE_FREQUENCY;
}

/*
 * A cause of a stage before compute, told by the thread itself once it is in:
 * the labels and extras of what comes back are the caller's to fill.
 */
static __always_inline struct told *cause_tell(struct thread *t, u32 cause, u64 ns)
{
	t->caused |= 1U << cause;
	t->cause_ns[cause] = ns;
	t->cause_events[cause] = 1;
	return &t->told[cause - FIRST_LABELLED];
}

static __always_inline void told_label(struct told *told, u64 first, u64 second)
{
	told->label[0] = first;
	told->label[1] = second;
	told->label[2] = 0;
	told->label[3] = 0;
	told->label[4] = 0;
	told->extra[0] = 0;
	told->extra[1] = 0;
	told->extra[2] = 0;
	told->extra[3] = 0;
	told->extra[4] = 0;
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

static __always_inline struct delivery *this_delivery(void)
{
	u32 row = this_row();

	return delivery.lookup(&row);
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
	if (!(t->caused & CAUSES_OF_COMPUTE))
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

static __always_inline u32 causes_wanted(void)
{
	u32 zero = 0, *wanted = cause_wanted.lookup(&zero);

	return wanted ? *wanted : 0;
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
#define causes_ended(t)
#endif
