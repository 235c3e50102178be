/* SPDX-License-Identifier: Dual MIT/GPL */
/*
 * What a step's causes add to its agent's, once it has ended.
 *
 * Runs behind the chain's programs and not in them: the kernel's verifier
 * follows each path through a program, and the chain has many. Until the
 * thread is in anew nothing writes what is read here.
 */

/* Three bits each. */
static __always_inline u32 stage_of_cause(u32 cause)
{
	return (cause < 21 ? STAGES_OF_CAUSES >> 3 * cause :
			     STAGES_OF_CAUSES_21 >> 3 * (cause - 21)) & 7;
}

/*
 * bucket_of() with half of its sub-buckets and one branch: it stands in a loop,
 * of which the verifier follows each path. The number of bits at and below the
 * highest one tells its place.
 */
static __always_inline u64 cause_bucket(u64 v)
{
	u64 bits, i;

	if (v >> (MAX_EXPONENT + 1)) {
		lose(LOSS_OVERFLOW);
		v = (1ULL << (MAX_EXPONENT + 1)) - 1;
	}
	bits = v | 1U << SUB_BITS;
	bits |= bits >> 1;
	bits |= bits >> 2;
	bits |= bits >> 4;
	bits |= bits >> 8;
	bits |= bits >> 16;
	bits |= bits >> 32;
	bits -= bits >> 1 & 0x5555555555555555ULL;
	bits = (bits & 0x3333333333333333ULL) + (bits >> 2 & 0x3333333333333333ULL);
	bits = (bits + (bits >> 4)) & 0x0f0f0f0f0f0f0f0fULL;
	bits = (bits * 0x0101010101010101ULL >> 56) - 1 - SUB_BITS;
	i = ((bits << SUB_BITS) + (v >> bits)) >> 1;
	asm volatile("%0 &= %1" : "+r"(i) : "i"(CAUSE_BUCKETS - 1));
	return i;
}

/* Of two numbers below 2^63, without a branch. */
static __always_inline u64 smaller(u64 a, u64 b)
{
	u64 less = (s64)(a - b) >> 63;

	/* The compiler would make a branch of it. */
	asm volatile("" : "+r"(less));
	return b + ((a - b) & less);
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

/* The row of a label; NULL where there is no room. */
static __always_inline struct detail *detail_of(u32 slot, u32 cause, u64 *label)
{
	struct detail_key key;
	struct detail *d;

	key.owner = (u64)cause << 32 | slot;
#pragma clang loop unroll(full)
	for (u32 i = 0; i < LABEL_WORDS; i++)
		key.label[i] = label[i];
	d = cause_details.lookup(&key);
	return d ? d : new_detail(&key, slot, cause);
}

static __always_inline void detail_extras(struct detail *d, struct told *told)
{
#pragma clang loop unroll(full)
	for (u32 i = 0; i < EXTRAS; i++)
		if (told->extra[i])
			__sync_fetch_and_add(&d->extra[i], told->extra[i]);
}

/* A step had @cause, with this label. */
static __always_inline void detail_add(u32 slot, u32 cause, struct told *told,
				       u64 events, u64 ns)
{
	struct detail *d = detail_of(slot, cause, told->label);

	if (!d)
		return;
	__sync_fetch_and_add(&d->steps, 1);
	__sync_fetch_and_add(&d->events, events);
	__sync_fetch_and_add(&d->ns, ns);
	if (ns > d->max_ns)
		d->max_ns = ns;
	detail_extras(d, told);
}

/* It happened for the agent, but no step waited for it. */
static __always_inline void detail_event(u32 slot, u32 cause, struct told *told)
{
	struct detail *d = detail_of(slot, cause, told->label);

	if (!d)
		return;
	__sync_fetch_and_add(&d->events, 1);
	detail_extras(d, told);
}

/* Who ran while the step waited for its CPU, by name. */
static __always_inline void ran_fold(struct thread *t, u32 slot)
{
	struct told told = {};
	struct ran_by *r;
	u64 more;
	u32 i;

#pragma clang loop unroll(disable)
	for (i = 0; i <= RAN_EACH; i++) {
		r = &t->others[i];
		if (!r->ns)
			continue;
		/* The last has those beyond: the label of all ones. */
		more = i == RAN_EACH ? ~0ULL : 0;
		told.label[0] = r->comm[0] | more;
		told.label[1] = r->comm[1] | more;
		told.label[2] = r->kind | more;
		told.label[3] = more;
		told.label[4] = more;
		detail_add(slot, CAUSE_RAN_MEANWHILE, &told, 1, r->ns);
	}
}

/*
 * Did the frequency of its CPU rise in the time from the step's wake-up to its
 * end? The thread may have gone on to other CPUs meanwhile; those do not count.
 */
static __always_inline int frequency_fold(struct thread *t)
{
	u64 woken = t->khz_in - t->stage[STAGE_QUEUE] -
		    t->stage[STAGE_IDLE_EXIT] - t->stage[STAGE_IPI];
	u64 at = 0, from = t->khz, to = 0;
	struct power_cpu *p;
	struct told *told;
	u32 on = t->cpu, i;

	p = power_cpus.lookup(&on);
	if (!p)
		return 0;
#pragma clang loop unroll(disable)
	for (i = 0; i < RAMPS_KEPT; i++) {
		if (p->ramp_at[i] < woken || p->ramp_at[i] > t->last ||
		    (at && p->ramp_at[i] > at))
			continue;
		at = p->ramp_at[i];
		from = p->ramp_from[i];
		to = p->ramp_to[i];
	}
	told = &t->told[CAUSE_FREQUENCY - FIRST_LABELLED];
	told_label(told, (from + KHZ_STEP / 2) / KHZ_STEP * KHZ_STEP,
		   (to + KHZ_STEP / 2) / KHZ_STEP * KHZ_STEP);
	told->extra[0] = at ? at - woken : 0;
	t->cause_ns[CAUSE_FREQUENCY] = at > t->khz_in ? at - t->khz_in : 0;
	t->cause_events[CAUSE_FREQUENCY] = at != 0;
	return at != 0;
}

/*
 * A step has ended. Runs with preemption off. A cause of a stage before compute
 * takes no longer than the stage did: what began before the gate counts from
 * the gate on. Those of one stage lie in one another, so the longest of them
 * is what they explain together.
 */
static __always_inline void causes_fold(struct thread *t)
{
	u32 caused = t->folding, labelled = caused, slot = t->slot, i, stage, at, row;
	u64 *explained = t->staged_ns;
	struct cause_hist *h;
	struct cause_row *r;
	u64 ns;

	t->folding = 0;
	if (slot == NO_SLOT || slot >= SLOTS)
		return;
	row = this_row() * SLOTS + slot;
	r = cause_rows.lookup(&row);
	h = (void *)cause_hist.lookup(&slot);
	if (!r || !h)
		return;
	/* How often the frequency did not rise is told by its label alone. */
	if (caused & 1U << CAUSE_FREQUENCY && !frequency_fold(t))
		caused &= ~(1U << CAUSE_FREQUENCY);
#pragma clang loop unroll(full)
	for (i = 0; i <= STAGE_QUEUE; i++)
		explained[i] = 0;
	r->seq++;
	barrier();
	/* What was computed until the frequency rose was computed all the same. */
	if (caused & CAUSES_OF_COMPUTE & ~(1U << CAUSE_FREQUENCY))
		r->explained_ns[STAGE_COMPUTE] += t->explained_ns;
#pragma clang loop unroll(disable)
	for (i = 0; i < NR_CAUSES; i++) {
		if (!(caused & 1U << i))
			continue;
		ns = t->cause_ns[i];
		stage = stage_of_cause(i);
		if (stage <= STAGE_QUEUE) {
			ns = smaller(ns, t->stage[stage]);
			t->cause_ns[i] = ns;
			/* That it came to another CPU does not say what it waited for. */
			if (i != CAUSE_PLACEMENT)
				explained[stage] += ns - smaller(ns, explained[stage]);
		}
		r->steps[i]++;
		r->events[i] += t->cause_events[i];
		r->ns[i] += ns;
		__sync_fetch_and_add(&h->bucket[i][cause_bucket(ns)], 1);
	}
	/* Raise to entry lies in stage irq too, behind the handler. */
	if (caused & 1U << CAUSE_SOFTIRQ) {
		ns = t->raised_ns;
		if (t->raised_irq && caused & 1U << CAUSE_INTERRUPT)
			ns += t->cause_ns[CAUSE_INTERRUPT];
		if (ns > t->stage[STAGE_IRQ])
			ns = t->stage[STAGE_IRQ];
		if (ns > explained[STAGE_IRQ])
			explained[STAGE_IRQ] = ns;
	}
	r->explained_ns[STAGE_WAIT] += explained[STAGE_WAIT];
	r->explained_ns[STAGE_IRQ] += explained[STAGE_IRQ];
	r->explained_ns[STAGE_SOFTIRQ] += explained[STAGE_SOFTIRQ];
	r->explained_ns[STAGE_IPI] += explained[STAGE_IPI];
	r->explained_ns[STAGE_IDLE_EXIT] += explained[STAGE_IDLE_EXIT];
	r->explained_ns[STAGE_QUEUE] += explained[STAGE_QUEUE];
	barrier();
	r->seq++;
	if (!(labelled >> FIRST_LABELLED))
		return;
	if (labelled & 1U << CAUSE_RAN_MEANWHILE)
		ran_fold(t, slot);
	labelled &= ~(1U << CAUSE_RAN_MEANWHILE);
#pragma clang loop unroll(disable)
	for (at = 0; at < NR_LABELLED; at++) {
		i = FIRST_LABELLED + at;
		if (labelled & 1U << i)
			detail_add(slot, i, &t->told[at], t->cause_events[i],
				   t->cause_ns[i]);
	}
}

#if LEVEL_FULL
/* Behind the chain's own program, which ends steps there; at sched_switch p_cause_switch folds. */
int p_cause_fold(args_t ctx)
{
	struct thread *t = this_thread();

	if (!t || !t->folding)
		return 0;
	preempt_off();
	causes_fold(t);
	preempt_on();
	return 0;
}
#endif
