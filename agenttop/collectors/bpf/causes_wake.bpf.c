/* SPDX-License-Identifier: Dual MIT/GPL */
/*
 * Causes of the stages before compute, as the waker knows them.
 *
 * They run behind the chain's own programs of the same tracepoints, so what
 * those have noted of the CPU and of the wake-up holds. The thread takes over
 * what it was given when it is in (causes_switch.bpf.c), and only from the
 * wake-up that its step goes by.
 */

static __always_inline struct delivery *this_delivery(void)
{
	u32 zero = 0;

	return delivery.lookup(&zero);
}

static __always_inline u32 causes_wanted(void)
{
	u32 zero = 0, *wanted = cause_wanted.lookup(&zero);

	return wanted ? *wanted : 0;
}

/* Which interrupt raised a softirq first? The chain's program has noted when. */
int p_cause_raise(args_t ctx)
{
	struct delivery *d = this_delivery();
	struct cpu *cpu = this_cpu();
	u32 vec = ctx[0];
	u64 ts;

	if (!cpu || !d || vec >= NR_SOFTIRQ)
		return 0;
	ts = cpu->raise_ts[vec];
	if (!ts || d->raised[vec].ts == ts)
		return 0;
	d->raised[vec].ts = ts;
	d->raised[vec].by = cpu->hard ? cpu->hard << 32 | cpu->hard_id : 0;
	d->raised[vec].by_ts = cpu->hard_ts;
	return 0;
}

/* It may be raised anew while it runs. */
int p_cause_softirq(args_t ctx)
{
	struct delivery *d = this_delivery();
	u32 vec = ctx[0];

	if (!d || vec >= NR_SOFTIRQ)
		return 0;
	d->soft.ts = d->raised[vec].ts;
	d->soft.by = d->raised[vec].by;
	d->soft.by_ts = d->raised[vec].by_ts;
	d->raised[vec].ts = 0;
	d->raised[vec].by = 0;
	return 0;
}

static __always_inline void give_interrupt(struct given *g, struct cpu *cpu,
					   struct delivery *d, u64 now)
{
	if (cpu->hard) {
		g->irq_by = cpu->hard << 32 | cpu->hard_id;
		g->irq_ns = now - cpu->hard_ts;
		g->irq_softirq = 0;
	} else if (cpu->soft && d->soft.by && d->soft.by_ts == cpu->soft_event) {
		g->irq_by = d->soft.by;
		g->irq_ns = d->soft.ts - d->soft.by_ts;
		g->irq_softirq = 1;
	} else {
		return;
	}
	g->has |= 1U << CAUSE_INTERRUPT;
}

int p_cause_waking(args_t ctx)
{
	struct thread *t = thread_of((void *)ctx[0]);
	struct delivery *d;
	struct given *g;
	struct cpu *cpu;
	u32 wanted;

	if (!t)
		return 0;
	cpu = this_cpu();
	d = this_delivery();
	if (!cpu || !d)
		return 0;
	wanted = causes_wanted();
	g = &t->given;
	g->has = 0;
	g->cpu = bpf_get_smp_processor_id();
	if (wanted & 1U << CAUSE_INTERRUPT)
		give_interrupt(g, cpu, d, t->wake.waking);
	g->seq = t->wake.seq;
	return 0;
}

/* The thread is in: what it was given are causes of this step. */
static __always_inline void causes_take(struct thread *t)
{
	struct given *g = &t->given;
	struct told *told;

	t->taken = t->seen;
	/* Of the wake-ups in one gate the last counts. */
	t->caused &= CAUSES_OF_COMPUTE;
	if (g->has & 1U << CAUSE_INTERRUPT) {
		told = cause_tell(t, CAUSE_INTERRUPT, g->irq_ns);
		told_label(told, g->irq_by, g->cpu);
		told->extra[0] = g->irq_softirq;
	}
}
