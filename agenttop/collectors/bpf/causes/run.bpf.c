/* SPDX-License-Identifier: Dual MIT/GPL */
/*
 * Causes between the wake-up and the run: which CPU the thread came to, who
 * ran there while it waited, whether another CPU was idle meanwhile, and the
 * power state that the CPU was in.
 *
 * Each CPU keeps its latest switches (run_cpus). A thread that is switched in
 * looks back over its wait: at those of the CPU that it was woken on, and at
 * the idle times of the CPUs that it is allowed on.
 */

/* Time that a CPU has spent in interrupts and softirqs. */
static __always_inline u64 interrupted_ns(struct cpu *cpu, u64 now)
{
	if (cpu->soft)
		return cpu->stolen_ns + now - cpu->soft_ts;
	if (cpu->hard)
		return cpu->stolen_ns + now - cpu->hard_ts;
	return cpu->stolen_ns;
}

/* Fires on the CPU that does the wake-up's last part, mostly the target. */
int p_cause_wakeup(args_t ctx)
{
	struct thread *t = thread_of((void *)ctx[0]);
	struct cpu *cpu;

	if (!t || t->ready_seq == t->wake.seq ||
	    t->wake.target != bpf_get_smp_processor_id())
		return 0;
	cpu = this_cpu();
	if (!cpu)
		return 0;
	t->ready_stolen = interrupted_ns(cpu, bpf_ktime_get_ns());
	t->ready_seq = t->wake.seq;
	return 0;
}

/* A CPU goes on to @next. */
static __always_inline void run_note(struct run_cpu *c, void *next, u64 now)
{
	struct ran *last = &c->ran[(c->head - 1) & (RAN_KEPT - 1)];
	struct ran *e = &c->ran[c->head & (RAN_KEPT - 1)];
	u64 idle_ns = last->idle_ns + ((now - last->since) & last->idle);
	struct cpu *cpu = this_cpu();

	e->since = now;
	e->idle_ns = idle_ns;
	e->stolen_ns = cpu ? cpu->stolen_ns : 0;
	if (KERNEL_U32(next, OFF_PID)) {
		e->idle = 0;
		e->kind = KERNEL_U32(next, OFF_FLAGS) & PF_KTHREAD ?
			  RAN_KERNEL : RAN_TASK;
		e->comm[0] = KERNEL_U64(next, OFF_COMM);
		e->comm[1] = KERNEL_U64(next, OFF_COMM + 8);
	} else {
		e->idle = ~0ULL;
		e->kind = RAN_NONE;
	}
	c->cpu = bpf_get_smp_processor_id();
	barrier();
	c->head++;
}

/*
 * How long a CPU has been idle until @at, as far back as it is known; without
 * branches, as it runs for each CPU that the thread is allowed on.
 */
static __always_inline u64 idle_until(struct run_cpu *c, u64 at)
{
	u64 oldest = c->head, place = 0, half;
	struct ran *e;

#pragma clang loop unroll(full)
	for (half = RAN_KEPT / 2; half; half /= 2) {
		e = &c->ran[(oldest + place + half) & (RAN_KEPT - 1)];
		/* The shift makes all ones of since <= at. */
		place += half & (u64)((s64)(e->since - at - 1) >> 63);
	}
	e = &c->ran[(oldest + place) & (RAN_KEPT - 1)];
	return e->idle_ns +
	       ((at - e->since) & e->idle & (u64)((s64)(e->since - at) >> 63));
}

/* One more that ran while the thread waited. */
static __always_inline void ran_add(struct thread *t, u64 kind, u64 name0,
				    u64 name1, u64 ns)
{
	struct ran_by *r;
	u32 i;

#pragma clang loop unroll(full)
	for (i = 0; i < RAN_EACH; i++) {
		r = &t->others[i];
		if (!r->ns) {
			r->kind = kind;
			r->comm[0] = name0;
			r->comm[1] = name1;
		} else if (r->kind != kind || r->comm[0] != name0 ||
			   r->comm[1] != name1) {
			continue;
		}
		r->ns += ns;
		return;
	}
	t->others[RAN_EACH].ns += ns;
}

/* One switch of the CPU, from the newest back; whether to go on. */
static __always_inline int ran_look(struct thread *t, struct look *l, struct ran *e)
{
	u64 since = e->since, begin = since, ns, stolen = 0;

	/* The switch to the thread itself is noted a moment behind t->in. */
	if (since < l->end) {
		if (begin < l->from)
			begin = l->from;
		ns = l->end - begin;
		if (l->known && since >= l->from)
			stolen = l->after - e->stolen_ns;
		else if (l->known && t->ready_seq == t->seen)
			stolen = l->after - t->ready_stolen;
		if (e->comm[0] == KSOFTIRQ || (s64)stolen < 0)
			stolen = 0;
		if (stolen > ns)
			stolen = ns;
		if (e->kind != RAN_NONE) {
			ran_add(t, e->kind, e->comm[0], e->comm[1], ns - stolen);
			l->total += ns - stolen;
			l->irqs += stolen;
		}
		l->end = begin;
	}
	l->after = e->stolen_ns;
	l->known = 1;
	return since > l->from;
}

/*
 * Who had the CPU @c from @from until the thread was in. Interrupts and
 * softirqs are told apart from whom they interrupted; but not when they took
 * no longer than the rest of the one that woke the thread may take.
 *
 * What is summed lies in memory, of which the verifier keeps no account: so
 * each turn of the loop looks to it like the one before.
 */
static __always_inline void ran_take(struct thread *t, struct run_cpu *c,
				     struct look *l, u64 from)
{
	u64 head = c->head;
	u32 i;

	t->others[0].ns = 0;
	t->others[1].ns = 0;
	t->others[2].ns = 0;
	t->others[3].ns = 0;
	t->others[RAN_EACH].ns = 0;
	l->from = from;
	l->end = t->in;
	l->known = 0;
	l->total = 0;
	l->irqs = 0;
#pragma clang loop unroll(disable)
	for (i = 1; i <= RAN_WALK; i++) {
		barrier();
		if (!ran_look(t, l, &c->ran[(head - i) & (RAN_KEPT - 1)]))
			break;
		barrier();
	}
	if (l->irqs >= RAN_STOLEN_NS) {
		ran_add(t, RAN_INTERRUPTS, 0, 0, l->irqs);
		l->total += l->irqs;
	}
}

/*
 * The longest that one allowed CPU that is online was idle meanwhile: others may have been too.
 * Without branches in the loop: the verifier follows each of them through all
 * the turns that are left, and would give up with 70 CPUs.
 */
static __always_inline void avoidable_take(struct thread *t, void *task,
					   struct look *l, u32 on)
{
	struct online_cpus *online;
	struct run_cpu *c;
	struct told *told;
	u64 ns, more, cpu;
	u32 row, zero = 0;

	online = online_cpus.lookup(&zero);
	if (!online)
		return;
	/* A mask may name CPUs that are offline: what they do looks like idling. */
	l->allowed[0] = KERNEL_U64(task, OFF_CPUS_MASK) & online->mask[0];
	l->allowed[1] = 0;
#if CPU_SPAN > 64
	l->allowed[1] = KERNEL_U64(task, OFF_CPUS_MASK + 8) & online->mask[1];
#endif
	if (on < AVOIDABLE_CPUS)
		l->allowed[on / 64 & 1] &= ~(1ULL << on % 64);
	if (!l->allowed[0] && !l->allowed[1])
		return;
	l->idle_ns = 0;
	l->idle_cpu = 0;
#pragma clang loop unroll(disable)
	for (row = 0; row < AVOIDABLE_CPUS && row < CPU_ROWS; row++) {
		u32 id = row;

		barrier();
		c = run_cpus.lookup(&id);
		if (!c)
			break;
		cpu = c->cpu;
		ns = idle_until(c, t->in) - idle_until(c, l->from);
		ns &= -(l->allowed[cpu / 64 & 1] >> (cpu & 63) & 1);
		ns &= (u64)((s64)(cpu - AVOIDABLE_CPUS) >> 63);
		/* All ones if it was idle for longer; the shift keeps the sign. */
		more = (u64)((s64)(l->idle_ns - ns) >> 63);
		l->idle_ns += (ns - l->idle_ns) & more;
		l->idle_cpu += (cpu - l->idle_cpu) & more;
		barrier();
	}
	if (l->idle_ns < AVOIDABLE_NS)
		return;
	if (l->idle_ns > l->total)
		l->idle_ns = l->total;
	told = cause_tell(t, CAUSE_AVOIDABLE_WAIT, l->idle_ns);
	told_label(told, on, l->idle_cpu);
}

static __always_inline void idle_take(struct thread *t, struct power_cpu *p)
{
	struct cpu *cpu = this_cpu();
	struct told *told;

	if (!cpu || !t->stage[STAGE_IDLE_EXIT])
		return;
	told = cause_tell(t, CAUSE_IDLE, t->stage[STAGE_IDLE_EXIT]);
	told_label(told, cpu->idle_last, p->idle_kind);
	if (p->miss_at >= cpu->idle_exit) {
		told->extra[0] = !p->miss_below;
		told->extra[1] = p->miss_below;
	}
}

/* The thread is in behind its wake-up. */
static __always_inline void run_take(struct thread *t, void *task, u32 wanted)
{
	u32 here = t->cpu, on = here, row = row_of(here);
	u64 wait = t->stage[STAGE_QUEUE];
	struct power_cpu *p = power_cpus.lookup(&row);
	struct run_cpu *c = run_cpus.lookup(&row);
	struct told *told;
	struct look *l;

	if (!c || !p)
		return;
	if (wanted & 1U << CAUSE_IDLE)
		idle_take(t, p);
	if (wanted & 1U << CAUSE_FREQUENCY && p->khz) {
		t->had_khz = 1;
		t->khz = p->khz;
		t->khz_in = t->in;
	}
	if (t->wake.seq == t->seen && t->wake.wakeup)
		on = t->wake.target;
	if (wanted & 1U << CAUSE_PLACEMENT && t->left_cpu &&
	    t->left_cpu - 1 != here) {
		told = cause_tell(t, CAUSE_PLACEMENT, wait);
		told_label(told, t->left_cpu - 1, here);
		told->extra[0] = t->stage[STAGE_IPI];
		told->extra[1] = on != here;
	}
	if (!wait || !(wanted & CAUSES_LOOKING_BACK))
		return;
	l = &c->look;
	row = row_of(on);
	c = run_cpus.lookup(&row);
	if (!c)
		return;
	ran_take(t, c, l, t->in - wait);
	if (l->total && wanted & 1U << CAUSE_RAN_MEANWHILE)
		cause_tell(t, CAUSE_RAN_MEANWHILE, l->total);
	if (l->total >= AVOIDABLE_NS && wanted & 1U << CAUSE_AVOIDABLE_WAIT)
		avoidable_take(t, task, l, on);
}

/* Behind p_cause_switch, which has forgotten what an earlier wake-up in the same gate had. */
int p_cause_run(args_t ctx)
{
	void *prev = (void *)ctx[1], *next = (void *)ctx[2];
	u32 here = bpf_get_smp_processor_id(), wanted = causes_wanted();
	u32 row = row_of(here);
	struct run_cpu *c;
	struct thread *t;

	if (wanted & CAUSES_LOOKING_BACK) {
		c = run_cpus.lookup(&row);
		if (c)
			run_note(c, next, bpf_ktime_get_ns());
	}
	t = thread_of(prev);
	if (t)
		t->left_cpu = here + 1;
	t = thread_of(next);
	if (!t || t->run_seq == t->seen)
		return 0;
	t->run_seq = t->seen;
	run_take(t, next, wanted);
	return 0;
}

/*
 * cpu_idle(state, cpu), on the way in: some machines trace no switch from
 * certain tasks (chain.bpf.c), and on a CPU that went idle from one it would
 * be taken to run on. Nor is it known who ran when the programs were attached.
 */
int p_cause_idle(args_t ctx)
{
	u32 row = this_row();
	struct run_cpu *c;

	if ((u32)ctx[0] == (u32)-1)
		return 0;
	c = run_cpus.lookup(&row);
	if (c && !c->ran[(c->head - 1) & (RAN_KEPT - 1)].idle)
		run_note(c, current_task(), bpf_ktime_get_ns());
	return 0;
}

/* cpu_idle_miss(cpu, state, below): the governor's choice, once it is known to be wrong. */
int p_cause_idle_miss(args_t ctx)
{
	u32 row = this_row();
	struct power_cpu *p = power_cpus.lookup(&row);

	if (!p)
		return 0;
	p->miss_below = (ctx[2] & 0xff) != 0;
	p->miss_at = bpf_ktime_get_ns();
	return 0;
}

/* cpu_frequency(khz, cpu): it may fire on another CPU than that. */
int p_cause_frequency(args_t ctx)
{
	u32 row = row_of(ctx[1]), khz = ctx[0];
	struct power_cpu *p = power_cpus.lookup(&row);
	u32 at;

	if (!p)
		return 0;
	if (p->khz && khz > p->khz) {
		at = p->ramps & (RAMPS_KEPT - 1);
		p->ramp_from[at] = p->khz;
		p->ramp_to[at] = khz;
		p->ramp_at[at] = bpf_ktime_get_ns();
		p->ramps++;
	}
	p->khz = khz;
	return 0;
}
