/* SPDX-License-Identifier: Dual MIT/GPL */
/*
 * The agent latency window: "this thread will be needed again within
 * window_ns". Opened at the wake-up, in the waker's context, moved on by each
 * further one, over by itself.
 *
 * A window holds a cell: that of the CPU where the thread will run, and the
 * agent's own where that is wanted. The guardian keeps a CPU out of deep idle
 * while its cell says so. It is told once, by a ring that wakes it, when a
 * cell that it had let go of is held again; from then on it looks at the cell
 * itself until the time in it has passed. So a cell that is moved on and on
 * costs no event at all. No BPF timers: this runs under the woken task's
 * pi_lock, where starting one may deadlock.
 *
 * Each arming is paid from the agent's bucket. budget.py has the same
 * arithmetic and explains it.
 */

/* Tries against other CPUs that wake the same agent in the same 100 ns. */
#define WINDOW_TRIES 8

static __always_inline void tell_armed(struct cell *x, u32 cell, u32 slot, u64 now)
{
	struct armed_edge *e;

	if (__sync_val_compare_and_swap(&x->told, 0, 1))
		return;
	e = armed.ringbuf_reserve(sizeof(*e));
	if (!e) {
		lose(LOSS_WINDOW_RING_FULL);
		x->told = 0;
		return;
	}
	e->t = now;
	e->cell = cell;
	e->slot = slot;
	armed.ringbuf_submit(e, BPF_RB_FORCE_WAKEUP);
}

/* Hold a cell until then at least; by how much longer than it was held. */
static __always_inline u64 hold(u32 cell, u32 slot, u64 until, u64 now)
{
	struct cell *x = cells.lookup(&cell);
	u64 old = 0;
	int i;

	if (!x)
		return 0;
	for (i = 0; i < WINDOW_TRIES; i++) {
		old = x->until;
		if (old >= until)
			return 0;
		if (__sync_val_compare_and_swap(&x->until, old, until) == old)
			break;
	}
	if (!x->told)
		tell_armed(x, cell, slot, now);
	return until - (old > now ? old : now);
}

static __always_inline void throttle_off(struct window *b, u64 since, u64 zero,
					 u64 now)
{
	u64 end = zero + b->mark_ns;

	if (__sync_val_compare_and_swap(&b->throttled, since, 0) != since)
		return;
	/* It was over when the mark was reached, not when somebody asked. */
	if (end > now)
		end = now;
	if (end > since)
		__sync_fetch_and_add(&b->degraded_ns, end - since);
}

/* Whether the bucket grants this price; if so it is paid. */
static __always_inline int pay(struct window *b, u64 cost, u64 now)
{
	u64 zero, level, since;
	int i;

	for (i = 0; i < WINDOW_TRIES; i++) {
		zero = b->zero;
		level = 0;
		if (now >= zero)
			level = now - zero;
		else if (__sync_val_compare_and_swap(&b->zero, zero, now) == zero)
			zero = now;
		else
			continue;
		if (level > b->cap_ns)
			level = b->cap_ns;
		since = b->throttled;
		if (since) {
			if (level < b->mark_ns)
				return 0;
			throttle_off(b, since, zero, now);
		}
		if (level < cost) {
			if (!__sync_val_compare_and_swap(&b->throttled, 0, now))
				__sync_fetch_and_add(&b->throttles, 1);
			return 0;
		}
		if (__sync_val_compare_and_swap(&b->zero, zero, now - level + cost) == zero)
			return 1;
	}
	return 0;
}

/* At sched_waking, in the waker's context. */
static __always_inline void window_open(struct thread *t, u64 now)
{
	u32 slot = t->slot, cpu = t->cpu;
	struct wake *w = &t->wake;
	struct control *c;
	struct window *b;
	struct cell *x;
	u64 until, cost, old;

	w->until = 0;
	if (slot == NO_SLOT || slot >= SLOTS)
		return;
	c = controls.lookup(&slot);
	if (!c || !c->window_ns)
		return;
	b = windows.lookup(&slot);
	if (!b || cpu >= CPU_SPAN)
		return;
	until = now + c->window_ns;
	cost = b->cost_ns;
	if (b->price) {
		x = cells.lookup(&cpu);
		if (!x)
			return;
		old = x->until > now ? x->until : now;
		cost = old < until ? (until - old) * b->price >> 10 : 0;
	}
	if (!pay(b, cost, now)) {
		__sync_fetch_and_add(&b->refusals, 1);
		return;
	}
	__sync_fetch_and_add(&b->grants, 1);
	__sync_fetch_and_add(&b->paid_ns, cost);
	w->until = until;
	w->held = cpu;
	old = hold(cpu, slot, until, now);
	if (old)
		__sync_fetch_and_add(&b->held_ns, old);
	if (b->floor)
		hold(CPU_SPAN + slot, slot, until, now);
}

/* At the switch-in: the scheduler may have chosen another CPU. Already paid for. */
static __always_inline void window_follow(struct thread *t, u64 now)
{
	struct wake *w = &t->wake;
	struct window *b;
	u32 slot = t->slot;
	u64 more;

	if (!w->until || w->held == t->cpu || t->cpu >= CPU_SPAN || w->until <= now)
		return;
	more = hold(t->cpu, slot, w->until, now);
	b = windows.lookup(&slot);
	if (more && b)
		__sync_fetch_and_add(&b->held_ns, more);
}
