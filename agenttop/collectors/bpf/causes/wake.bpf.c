/* SPDX-License-Identifier: Dual MIT/GPL */
/*
 * Causes of the stages before compute, as the waker knows them.
 *
 * They run behind the chain's own programs of the same tracepoints, so what
 * those have noted of the CPU and of the wake-up holds. The thread takes over
 * what it was given when it is in (causes_switch.bpf.c), and only from the
 * wake-up that its step goes by.
 */

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
	if (cpu->hard)
		d->raised_by = cpu->hard_ts;
	return 0;
}

/*
 * The handler's end comes behind the wake-up that it does itself: what it took
 * is added to the label then. It comes before a softirq that it raised.
 */
static __always_inline int handler_exit(void)
{
	struct delivery *d = this_delivery();
	struct cpu *cpu = this_cpu();
	struct detail *row;
	u64 ns;

	if (!cpu || !d)
		return 0;
	if (d->handled.since != cpu->hard_ts)
		d->handled.slot = 0;
	if (!d->handled.slot && d->raised_by != cpu->hard_ts)
		return 0;
	ns = bpf_ktime_get_ns() - cpu->hard_ts;
	d->handler.since = cpu->hard_ts;
	d->handler.ns = ns;
	if (!d->handled.slot)
		return 0;
	row = detail_of(d->handled.slot, CAUSE_INTERRUPT, d->handled.label);
	d->handled.slot = 0;
	if (!row)
		return 0;
	__sync_fetch_and_add(&row->extra[1], ns);
	__sync_fetch_and_add(&row->extra[2], 1);
	return 0;
}

#define HANDLER_EXIT(name)						\
	int p_cause_##name##_exit(args_t ctx)				\
	{								\
		return handler_exit();					\
	}

HANDLER_EXIT(line)
HANDLER_EXIT(local_timer)
HANDLER_EXIT(reschedule)
HANDLER_EXIT(call_function)
HANDLER_EXIT(call_function_single)
HANDLER_EXIT(irq_work)

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
	if (vec == SOFTIRQ_NET_RX) {
		d->poll_since = bpf_ktime_get_ns();
		d->nr_polled = 0;
	}
	return 0;
}

static __always_inline void give_interrupt(struct given *g, struct cpu *cpu,
					   struct delivery *d, u32 slot, u64 now)
{
	g->irq_whole = 0;
	if (cpu->hard) {
		g->irq_by = cpu->hard << 32 | cpu->hard_id;
		g->irq_ns = now - cpu->hard_ts;
		g->irq_softirq = 0;
		if (slot != NO_SLOT && slot < SLOTS) {
			d->handled.slot = slot;
			d->handled.since = cpu->hard_ts;
			d->handled.label[0] = g->irq_by;
			d->handled.label[1] = g->cpu;
		}
	} else if (cpu->soft && d->soft.by && d->soft.by_ts == cpu->soft_event) {
		g->irq_by = d->soft.by;
		g->irq_ns = d->soft.ts - d->soft.by_ts;
		g->irq_softirq = 1;
		if (d->handler.since == d->soft.by_ts)
			g->irq_whole = d->handler.ns;
	} else {
		return;
	}
	g->has |= 1U << CAUSE_INTERRUPT;
}

static __always_inline void give_softirq(struct given *g, struct cpu *cpu,
					 struct delivery *d, u64 now)
{
	void *task = current_task();

	g->soft_vec = cpu->soft_vec;
	g->soft_ns = now - cpu->soft_ts;
	g->soft_raised = d->soft.ts ? cpu->soft_ts - d->soft.ts : 0;
	/* Its threads run them under their own name: "ksoftirq", "d/N" behind it. */
	g->soft_thread = KERNEL_U32(task, OFF_FLAGS) & PF_KTHREAD &&
			 KERNEL_U64(task, OFF_COMM) == KSOFTIRQ;
	g->has |= 1U << CAUSE_SOFTIRQ;
}

/*
 * hrtimer_expire_entry: a timer may fire from its soft expiry on, and shall by
 * its hard one; between them lies the slack that its thread allows.
 */
int p_cause_hrtimer(args_t ctx)
{
	struct delivery *d = this_delivery();
	s64 now, soft, hard;

	if (!d)
		return 0;
	now = hrtimer_now(ctx);
	soft = KERNEL_U64(ctx[0], OFF_HRTIMER_SOFT);
	hard = KERNEL_U64(ctx[0], OFF_HRTIMER_EXPIRES);
	d->timer.function = KERNEL_U64(ctx[0], OFF_HRTIMER_FUNCTION);
	d->timer.wheel = 0;
	d->timer.slack = hard - soft;
	d->timer.slack_used = now < soft ? 0 : (now < hard ? now : hard) - soft;
	d->timer.late = now > hard ? now - hard : 0;
	return 0;
}

/* timer_expire_entry(timer, baseclk): its time is in ticks. */
int p_cause_timer(args_t ctx)
{
	struct delivery *d = this_delivery();
	s64 late;

	if (!d)
		return 0;
	late = ctx[1] - KERNEL_U64(ctx[0], OFF_TIMER_EXPIRES);
	d->timer.function = KERNEL_U64(ctx[0], OFF_TIMER_FUNCTION);
	d->timer.wheel = 1;
	d->timer.slack = 0;
	d->timer.slack_used = 0;
	d->timer.late = late > 0 ? late * TICK_NS : 0;
	d->wheel = 1;
	return 0;
}

int p_cause_timer_exit(args_t ctx)
{
	struct delivery *d = this_delivery();

	if (d)
		d->wheel = 0;
	return 0;
}

/* What of it lies in stage irq. */
static __always_inline void give_timer(struct given *g, struct cpu *cpu,
				       struct delivery *d, u64 now)
{
	if (cpu->hard && cpu->hrtimer) {
		g->timer_ns = now - cpu->hard_ts;
		d->timer.late_idle = cpu->hard_idle ? d->timer.late : 0;
		g->timer_ns += d->timer.late - d->timer.late_idle;
	} else if (!cpu->hard && cpu->soft && (cpu->hrtimer || d->wheel)) {
		g->timer_ns = cpu->soft_ts - cpu->soft_event;
		d->timer.late_idle = 0;
	} else {
		return;
	}
	g->timer = d->timer;
	g->has |= 1U << CAUSE_TIMER;
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
		give_interrupt(g, cpu, d, t->slot, t->wake.waking);
	if (wanted & 1U << CAUSE_SOFTIRQ && !cpu->hard && cpu->soft)
		give_softirq(g, cpu, d, t->wake.waking);
	if (wanted & 1U << CAUSE_TIMER)
		give_timer(g, cpu, d, t->wake.waking);
	if (wanted & (1U << CAUSE_NETWORK | 1U << CAUSE_SOCKET))
		give_packet(g, cpu, d, t->slot, wanted, t->wake.waking);
	if (wanted & 1U << CAUSE_WORKQUEUE)
		give_work(g, cpu, d, t->wake.waking);
	if (wanted & CAUSES_OF_BLOCK)
		give_block(t, g, t->wake.waking);
	if (wanted & (1U << CAUSE_IO_URING | WANTED_CONTEXTS))
		give_ring(t, g, t->wake.waking);
	g->seq = t->wake.seq;
	return 0;
}

/* The thread is in: what it was given are causes of this step. */
static __always_inline void causes_take(struct thread *t)
{
	struct given *g = &t->given;
	struct told *told;

	if (g->has & 1U << CAUSE_INTERRUPT) {
		told = cause_tell(t, CAUSE_INTERRUPT, g->irq_ns);
		told_label(told, g->irq_by, g->cpu);
		told->extra[0] = g->irq_softirq;
		told->extra[1] = g->irq_whole;
		told->extra[2] = g->irq_whole != 0;
	}
	if (g->has & 1U << CAUSE_SOFTIRQ) {
		told = cause_tell(t, CAUSE_SOFTIRQ, g->soft_ns);
		told_label(told, g->soft_vec, g->cpu);
		told->extra[0] = g->soft_raised;
		told->extra[1] = g->soft_thread;
		t->raised_ns = g->soft_raised;
		t->raised_irq = g->has & 1U << CAUSE_INTERRUPT && g->irq_softirq;
	}
	if (g->has & 1U << CAUSE_TIMER) {
		told = cause_tell(t, CAUSE_TIMER, g->timer_ns);
		told_label(told, g->timer.function, g->timer.wheel);
		told->extra[0] = g->timer.slack_used;
		told->extra[1] = g->timer.slack;
		told->extra[2] = g->timer.late;
		told->extra[3] = g->timer.late_idle;
	}
	if (g->has & 1U << CAUSE_NETWORK) {
		told = cause_tell(t, CAUSE_NETWORK, g->net_ns);
		told_label(told, g->net_label[0], g->net_label[1]);
		told->label[2] = g->net_label[2];
	}
	if (g->has & 1U << CAUSE_SOCKET) {
		told = cause_tell(t, CAUSE_SOCKET, g->sock_ns);
		told_label(told, g->sock_label[0], g->sock_label[1]);
		told->label[2] = g->sock_label[2];
		told->label[3] = g->sock_label[3];
		told->label[4] = g->sock_label[4];
	}
	if (g->has & 1U << CAUSE_WORKQUEUE) {
		told = cause_tell(t, CAUSE_WORKQUEUE, g->work_queued + g->work_run);
		told_label(told, g->work_label[0], g->work_label[1]);
		told->label[2] = g->work_label[2];
		told->extra[0] = g->work_queued;
		told->extra[1] = g->work_known;
		told->extra[2] = g->work_run;
	}
	if (g->has & causes_wanted() & 1U << CAUSE_BLOCK)
		take_block(t, g);
	if (g->has & 1U << CAUSE_IO_URING)
		take_ring(t, g);
}
