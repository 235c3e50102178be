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

/* A row for a label that has none; NULL where there is no room. */
static __always_inline struct detail *new_detail(struct detail_key *key, u32 slot,
						 u32 cause)
{
	struct labels *l = cause_labels.lookup(&slot);
	struct detail fresh = {}, *d;

	if (!l || cause >= NR_CAUSES)
		return 0;
	if (__sync_fetch_and_add(&l->labels[cause], 1) < LABELS_EACH) {
		if (!cause_details.insert(key, &fresh))
			return cause_details.lookup(key);
		/* Another CPU was faster with the same label, or all are taken. */
		__sync_fetch_and_add(&l->labels[cause], -1);
		d = cause_details.lookup(key);
		if (!d)
			lose(LOSS_LABELS_FULL);
		return d;
	}
	__sync_fetch_and_add(&l->labels[cause], -1);
#pragma clang loop unroll(full)
	for (u32 i = 0; i < LABEL_WORDS; i++)
		key->label[i] = ~0ULL;
	d = cause_details.lookup(key);
	if (d)
		return d;
	cause_details.insert(key, &fresh);
	d = cause_details.lookup(key);
	if (!d)
		lose(LOSS_LABELS_FULL);
	return d;
}

/* A step had @cause, with this label. */
static __always_inline void detail_add(u32 slot, u32 cause, struct told *told,
				       u64 events, u64 ns)
{
	struct detail_key key;
	struct detail *d;

	key.owner = (u64)cause << 32 | slot;
#pragma clang loop unroll(full)
	for (u32 i = 0; i < LABEL_WORDS; i++)
		key.label[i] = told->label[i];
	d = cause_details.lookup(&key);
	if (!d)
		d = new_detail(&key, slot, cause);
	if (!d)
		return;
	__sync_fetch_and_add(&d->steps, 1);
	__sync_fetch_and_add(&d->events, events);
	__sync_fetch_and_add(&d->ns, ns);
	if (ns > d->max_ns)
		d->max_ns = ns;
#pragma clang loop unroll(full)
	for (u32 i = 0; i < EXTRAS; i++)
		if (told->extra[i])
			__sync_fetch_and_add(&d->extra[i], told->extra[i]);
}

static __always_inline u32 stage_of_cause(u32 cause)
{
	u32 bit = 1U << cause;

	if (bit & CAUSES_OF_WAIT)
		return STAGE_WAIT;
	if (bit & CAUSES_OF_IRQ)
		return STAGE_IRQ;
	if (bit & CAUSES_OF_SOFTIRQ)
		return STAGE_SOFTIRQ;
	if (bit & CAUSES_OF_IPI)
		return STAGE_IPI;
	if (bit & CAUSES_OF_IDLE_EXIT)
		return STAGE_IDLE_EXIT;
	if (bit & CAUSES_OF_QUEUE)
		return STAGE_QUEUE;
	return STAGE_COMPUTE;
}

/*
 * The step ends. Runs with preemption off. A cause of a stage before compute
 * takes no longer than the stage did: what began before the gate counts from
 * the gate on. Those of one stage lie in one another, so the longest of them
 * is what they explain together.
 */
static __always_inline void causes_fold(struct thread *t, u32 slot, u32 row)
{
	u32 caused = t->caused, i, stage, at;
	u64 explained[STAGE_QUEUE + 1] = {};
	struct cause_hist *h;
	struct cause_row *r;
	u64 ns;

	if (!caused)
		return;
	r = cause_rows.lookup(&row);
	h = (void *)cause_hist.lookup(&slot);
	if (!r || !h)
		return;
	r->seq++;
	barrier();
	if (caused & CAUSES_OF_COMPUTE)
		r->explained_ns[STAGE_COMPUTE] += t->explained_ns;
#pragma clang loop unroll(disable)
	for (i = 0; i < NR_CAUSES; i++) {
		if (!(caused & 1U << i))
			continue;
		ns = t->cause_ns[i];
		stage = stage_of_cause(i);
		if (stage <= STAGE_QUEUE) {
			if (ns > t->stage[stage])
				t->cause_ns[i] = ns = t->stage[stage];
			if (ns > explained[stage])
				explained[stage] = ns;
		}
		r->steps[i]++;
		r->events[i] += t->cause_events[i];
		r->ns[i] += ns;
		__sync_fetch_and_add(&h->bucket[i][bucket_of(ns) >> 1], 1);
	}
	r->explained_ns[STAGE_WAIT] += explained[STAGE_WAIT];
	r->explained_ns[STAGE_IRQ] += explained[STAGE_IRQ];
	r->explained_ns[STAGE_SOFTIRQ] += explained[STAGE_SOFTIRQ];
	r->explained_ns[STAGE_IPI] += explained[STAGE_IPI];
	r->explained_ns[STAGE_IDLE_EXIT] += explained[STAGE_IDLE_EXIT];
	r->explained_ns[STAGE_QUEUE] += explained[STAGE_QUEUE];
	barrier();
	r->seq++;
	if (!(caused >> FIRST_LABELLED))
		return;
#pragma clang loop unroll(disable)
	for (at = 0; at < NR_LABELLED; at++) {
		i = FIRST_LABELLED + at;
		if (caused & 1U << i)
			detail_add(slot, i, &t->told[at], t->cause_events[i],
				   t->cause_ns[i]);
	}
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
