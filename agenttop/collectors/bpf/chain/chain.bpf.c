/* SPDX-License-Identifier: Dual MIT/GPL */
/*
 * The step chain of a thread.
 *
 *   gate entry ... event ... softirq ... waking ... wakeup ... idle exit ...
 *   |    wait      |   irq   | softirq   |   ipi    | idle_exit |  queue
 *   ... switch-in ... gate return ... next gate entry
 *       |   return    |    compute    |
 *
 * A stage ends where the next one begins, so their sum is the step to the
 * nanosecond. A time stamp that would break the order (a wake-up that raced
 * with going to sleep, an event before the gate) is moved to its neighbour.
 */

static __always_inline u64 between(u64 v, u64 low, u64 high)
{
	if (v < low)
		return low;
	return v > high ? high : v;
}

static __always_inline void count(struct agent_hist *h, u32 measure, u64 v)
{
	__sync_fetch_and_add(&h->bucket[measure][bucket_of(v)], 1);
}

/*
 * Keep a slow step whole. After c->keep of them each one raises the threshold
 * to itself: however many steps there are, few get through until user space
 * has looked, and the slowest always does. CPUs that race keep one more.
 */
static __always_inline void keep(struct thread *t, struct control *c, u64 now,
				 u64 slow, u64 ret, u64 compute)
{
	u64 more = c->keep;
	struct slow *e;

	if (more)
		c->keep = more - 1;
	else
		c->slow_ns = slow;
	e = slows.ringbuf_reserve(sizeof(*e));
	if (!e) {
		lose(LOSS_SLOW_RING_FULL);
		return;
	}
	e->t = now;
	e->pid_tgid = bpf_get_current_pid_tgid();
	e->slot = t->slot;
	e->gate = t->gate;
	e->source = t->source;
	e->cpu = t->cpu;
	e->waker_kind = t->kind;
	e->waker_id = t->id;
	e->waker_cpu = t->from;
	e->stage_ns[STAGE_WAIT] = t->stage[STAGE_WAIT];
	e->stage_ns[STAGE_IRQ] = t->stage[STAGE_IRQ];
	e->stage_ns[STAGE_SOFTIRQ] = t->stage[STAGE_SOFTIRQ];
	e->stage_ns[STAGE_IPI] = t->stage[STAGE_IPI];
	e->stage_ns[STAGE_IDLE_EXIT] = t->stage[STAGE_IDLE_EXIT];
	e->stage_ns[STAGE_QUEUE] = t->stage[STAGE_QUEUE];
	e->stage_ns[STAGE_RETURN] = ret;
	e->stage_ns[STAGE_COMPUTE] = compute;
	slows.ringbuf_submit(e, BPF_RB_NO_WAKEUP);
}

/*
 * The step ends at @end, which is not before t->in (lite) or t->exit (full).
 * Runs with preemption off; nothing that interrupts it writes rows.
 */
static __always_inline void step_end(struct thread *t, u64 end)
{
	u32 slot = t->slot, id;
	u64 ret = 0, compute, on, slow, step;
	struct agent_hist *h;
	struct control *c;
	struct row *r;

	if (slot == NO_SLOT || slot >= SLOTS)
		return;
	id = this_row() * SLOTS + slot;
	r = rows.lookup(&id);
	if (!r) {
		lose(LOSS_NEW_CPU);
		return;
	}
#if LEVEL_FULL
	if (!t->in) {
		/* The gate returned at once: saturation, not a step. */
		r->seq++;
		barrier();
		r->ready++;
		barrier();
		r->seq++;
		return;
	}
	ret = t->exit - t->in;
	compute = end - t->exit;
#else
	compute = end - t->in;
#endif
	step = end - t->enter;
	slow = t->in - t->enter - t->stage[STAGE_WAIT] + ret;
	on = compute - t->off_ns[0] - t->off_ns[1];
	if ((s64)compute < 0 || (s64)ret < 0 || (s64)slow < 0 || (s64)on < 0) {
		lose(LOSS_NEGATIVE);
		return;
	}
	t->steps++;
	t->last = end;

	r->seq++;
	barrier();
	r->steps++;
	r->step_ns += step;
	r->stage_ns[STAGE_WAIT] += t->stage[STAGE_WAIT];
	r->stage_ns[STAGE_IRQ] += t->stage[STAGE_IRQ];
	r->stage_ns[STAGE_SOFTIRQ] += t->stage[STAGE_SOFTIRQ];
	r->stage_ns[STAGE_IPI] += t->stage[STAGE_IPI];
	r->stage_ns[STAGE_IDLE_EXIT] += t->stage[STAGE_IDLE_EXIT];
	r->stage_ns[STAGE_QUEUE] += t->stage[STAGE_QUEUE];
	r->stage_ns[STAGE_RETURN] += ret;
	r->stage_ns[STAGE_COMPUTE] += compute;
	r->compute_ns[PART_ON_CPU] += on;
	r->compute_ns[PART_PREEMPTED] += t->off_ns[0];
	r->compute_ns[PART_BLOCKED] += t->off_ns[1];
	if (t->source <= SOURCE_SIGNAL)
		r->sources[t->source]++;
	if (t->gate < NR_GATES)
		r->gates[t->gate]++;
	c = controls.lookup(&slot);
	if (c && c->tail_ns && slow >= c->tail_ns) {
		r->tail_steps++;
		r->tail_ns[STAGE_IRQ] += t->stage[STAGE_IRQ];
		r->tail_ns[STAGE_SOFTIRQ] += t->stage[STAGE_SOFTIRQ];
		r->tail_ns[STAGE_IPI] += t->stage[STAGE_IPI];
		r->tail_ns[STAGE_IDLE_EXIT] += t->stage[STAGE_IDLE_EXIT];
		r->tail_ns[STAGE_QUEUE] += t->stage[STAGE_QUEUE];
		r->tail_ns[STAGE_RETURN] += ret;
	}
	barrier();
	r->seq++;

	h = (void *)hist.lookup(&slot);
	if (h) {
		count(h, MEASURE_WAIT, t->stage[STAGE_WAIT]);
		/*
		 * Most of these are 0 most of the time. User space knows how
		 * many steps there were, so the zeros need not be counted.
		 */
		if (t->stage[STAGE_IRQ])
			count(h, MEASURE_IRQ, t->stage[STAGE_IRQ]);
		if (t->stage[STAGE_SOFTIRQ])
			count(h, MEASURE_SOFTIRQ, t->stage[STAGE_SOFTIRQ]);
		if (t->stage[STAGE_IPI])
			count(h, MEASURE_IPI, t->stage[STAGE_IPI]);
		if (t->stage[STAGE_IDLE_EXIT])
			count(h, MEASURE_IDLE_EXIT, t->stage[STAGE_IDLE_EXIT]);
		count(h, MEASURE_QUEUE, t->stage[STAGE_QUEUE]);
#if LEVEL_FULL
		count(h, MEASURE_RETURN, ret);
#endif
		count(h, MEASURE_COMPUTE, compute);
		count(h, MEASURE_STEP, step);
		count(h, MEASURE_SLOWPATH, slow);
	}
	step_named(t, step, slow);
	causes_ended(t);
	if (c && slow > c->slow_ns)
		keep(t, c, end, slow, ret, compute);
}

static __always_inline void step_begin(struct thread *t, u32 gate, u64 now)
{
	t->gate = gate;
	t->lane = t->step_lane;
	t->enter = now;
	t->in = 0;
	t->exit = 0;
	t->cut = 0;
	t->off = 0;
	t->off_ns[0] = 0;
	t->off_ns[1] = 0;
	t->source = SOURCE_UNKNOWN;
	t->kind = WAKER_UNKNOWN;
	t->from = 0;
	causes_reset(t);
}

/* Switched in after sleeping in a gate: the stages up to here are known now. */
static __always_inline void woken(struct thread *t, u64 now)
{
	u64 event, soft, waking, wakeup, idle, gap = 0;
	u64 enter = t->enter;
	struct wake *w = &t->wake;
	struct cpu *cpu;
	u32 state;
	u64 i;
	struct one_hist *h;

	t->in = now;
	t->cpu = bpf_get_smp_processor_id();
	waking = w->waking;
	if (w->seq == t->seen || waking + RACE_NS < enter) {
		/*
		 * A lost event: step and compute stay exact. What woke it
		 * before, if it slept twice in this gate, did not end the wait.
		 */
		t->source = SOURCE_UNKNOWN;
		t->kind = WAKER_UNKNOWN;
		t->from = 0;
		t->stage[STAGE_WAIT] = now - enter;
		t->stage[STAGE_IRQ] = 0;
		t->stage[STAGE_SOFTIRQ] = 0;
		t->stage[STAGE_IPI] = 0;
		t->stage[STAGE_IDLE_EXIT] = 0;
		t->stage[STAGE_QUEUE] = 0;
		return;
	}
	t->seen = w->seq;
	t->source = w->source;
	t->kind = w->kind;
	t->id = w->id;
	t->from = w->cpu + 1;

	waking = between(waking, enter, now);
	event = between(w->event, enter, waking);
	soft = between(w->soft, event, waking);
	wakeup = between(w->wakeup, waking, now);
	idle = wakeup;
	cpu = this_cpu();
	/*
	 * Where it was moved while it waited, it had waited for a CPU that ran
	 * something else, and not for the one that it came to.
	 */
	if (cpu && (!w->wakeup || w->target == t->cpu))
		idle = between(cpu->idle_exit, wakeup, now);
	if (w->late)
		gap = event - between(event - w->late, enter, event);

	t->stage[STAGE_WAIT] = event - gap - enter;
	t->stage[STAGE_IRQ] = soft - event;
	t->stage[STAGE_SOFTIRQ] = waking - soft;
	t->stage[STAGE_IPI] = wakeup - waking;
	t->stage[STAGE_IDLE_EXIT] = idle - wakeup;
	t->stage[STAGE_QUEUE] = now - idle;
	if (w->late_idle)
		t->stage[STAGE_IDLE_EXIT] += gap;
	else
		t->stage[STAGE_IRQ] += gap;

	window_follow(t, now);

	if (cpu && idle > wakeup) {
		state = cpu->idle_last;
		h = idle_hist.lookup(&state);
		i = bucket_of(t->stage[STAGE_IPI] + t->stage[STAGE_IDLE_EXIT]);
		if (h)
			__sync_fetch_and_add(&h->bucket[i], 1);
	}
}

/*
 * The thread runs, but no switch to it was seen: some machines trace nothing
 * while certain tasks are current, neither a switch from them nor a wake-up by
 * an interrupt of theirs (seen with the first process of a virtual machine's
 * guest). The step stays exact; by @now the thread was in. At lite that is the
 * wake-up, which leaves the queue to compute; without one all is wait.
 */
static __always_inline void switch_in_lost(struct thread *t, u64 now)
{
	lose(LOSS_SWITCH_IN);
	woken(t, now);
}

/* Loop gates end a step, maybe gates only in threads that use no loop gate. */
static __always_inline int ends_step(struct thread *t, u32 gate, u64 now)
{
	if (gate < NR_LOOP_GATES) {
		t->loop = now;
		return 1;
	}
	return !t->loop || now - t->loop > LOOP_MEMORY_NS;
}

static __always_inline void went_off(struct thread *t, u64 now, u64 part)
{
	t->off = now;
	t->off_part = part;
}

static __always_inline void came_back(struct thread *t, u64 now)
{
	if (!t->off)
		return;
	if (t->off_part == PART_PREEMPTED)
		t->off_ns[0] += now - t->off;
	else
		t->off_ns[1] += now - t->off;
	t->off = 0;
}

#if LEVEL_FULL
static __always_inline void end_cut_gate(struct thread *t)
{
	if (t->cut) {
		t->exit = t->cut;
		t->cut = 0;
	}
}

static __always_inline void switched_out(struct thread *t, void *task, u64 now,
					 int blocked)
{
	end_cut_gate(t);
	if (t->pend && blocked) {
		if (t->enter && t->exit)
			step_end(t, t->pend);
		step_begin(t, t->pend_gate, t->pend);
		t->pend = 0;
	}
	if (!t->enter)
		return;
	if (!t->exit) {
		if (blocked) {
			/* Slept again in the same gate: the last wake-up counts. */
			t->in = 0;
			t->asleep = 1;
		}
		return;
	}
	went_off(t, now, blocked ? PART_BLOCKED : PART_PREEMPTED);
}

static __always_inline void switched_in(struct thread *t, u64 now)
{
	if (!t->enter)
		return;
	if (!t->exit) {
		if (t->asleep) {
			t->asleep = 0;
			woken(t, now);
		}
		return;
	}
	came_back(t, now);
}

static __always_inline void gate_entered(struct thread *t, u32 gate)
{
	u64 now = bpf_ktime_get_ns();

	if (!ends_step(t, gate, now))
		return;
	if (t->cut && gate == t->gate) {
		t->cut = 0;
		return;
	}
	end_cut_gate(t);
	if (gate >= NR_LOOP_GATES) {
		/* Ends the step before it only if it sleeps. */
		t->pend = now;
		t->pend_gate = gate;
		return;
	}
	if (t->enter && t->exit)
		step_end(t, now);
	t->pend = 0;
	t->asleep = 0;
	step_begin(t, gate, now);
}

int p_sys_enter(args_t ctx)
{
	void *task = current_task();
	struct thread *t;
	int gate;

	/* Most calls are no gates: that is known before whose they are. */
	if (nobodys(task))
		return 0;
	gate = gate_of((u32)ctx[1]);
	if (gate < 0)
		return 0;
	t = thread_of(task);
	if (!t)
		return 0;
	if (gate == GATE_IO_URING_ENTER && !uring_waits((void *)ctx[0]))
		return 0;
	/* No other thread of the agent may write the row meanwhile. */
	preempt_off();
	gate_entered(t, gate);
	preempt_on();
	return 0;
}

/*
 * A gate that was cut short without a signal (io_uring's task work does that
 * to an epoll_wait) and is entered again at once is one gate; so the end of a
 * cut gate is decided by what comes next.
 */
static __always_inline void gate_returned(struct thread *t, int gate, s64 ret)
{
	u64 now;

	t->pend = 0;
	if (!t->enter || t->exit || gate != t->gate)
		return;
	now = bpf_ktime_get_ns();
	if (t->asleep) {
		t->asleep = 0;
		switch_in_lost(t, now);
	}
	if (t->in && interrupted(ret))
		t->cut = now;
	else
		t->exit = now;
}
#else
static __always_inline void switched_out(struct thread *t, void *task, u64 now,
					 int blocked)
{
	void *regs;
	int gate;

	t->left |= left_gate(task);
	if (t->enter && !t->in)
		switch_in_lost(t, t->wake.seq != t->seen &&
				  t->wake.wakeup >= t->enter ?
				  t->wake.wakeup : now);
	if (blocked) {
		regs = (void *)bpf_task_pt_regs(task);
		gate = gate_of((u32)KERNEL_U64(regs, OFF_REGS_NR));
		if (gate == GATE_IO_URING_ENTER && !uring_waits(regs))
			gate = -1;
		if (gate == t->gate && !t->left && t->in) {
			/* Slept again in the same gate: the last wake-up counts. */
			t->in = 0;
			return;
		}
		if (gate >= 0 && ends_step(t, gate, now)) {
			t->left = 0;
			if (t->in)
				step_end(t, now);
			step_begin(t, gate, now);
			return;
		}
	}
	if (t->in)
		went_off(t, now, blocked ? PART_BLOCKED : PART_PREEMPTED);
}

static __always_inline void switched_in(struct thread *t, u64 now)
{
	if (!t->enter)
		return;
	if (!t->in)
		woken(t, now);
	else
		came_back(t, now);
}
#endif

/* sched_switch(preempt, prev, next[, prev_state]); the last one since 5.18. */
int p_sched_switch(args_t ctx)
{
	void *prev = (void *)ctx[1], *next = (void *)ctx[2];
	struct thread *t;
	u64 now = 0;

	t = thread_of(prev);
	if (t) {
		now = bpf_ktime_get_ns();
		context_off(t, now);
#if SWITCH_HAS_STATE
		switched_out(t, prev, now, !ctx[0] && (u32)ctx[3]);
#else
		switched_out(t, prev, now,
			     !ctx[0] && KERNEL_U32(prev, OFF_STATE));
#endif
	}
	t = thread_of(next);
	if (t) {
		if (!now)
			now = bpf_ktime_get_ns();
		context_on(t, now);
		switched_in(t, now);
	}
	return 0;
}

/*
 * A signal that cuts a gate short is its source, unless something better is
 * known: a child that ended, a timer.
 */
int p_signal_deliver(args_t ctx)
{
	struct thread *t = this_thread();

	if (!t || !t->in)
		return 0;
#if LEVEL_FULL
	if (t->cut && t->source == SOURCE_IPC)
		t->source = SOURCE_SIGNAL;
	end_cut_gate(t);
#else
	void *regs = (void *)bpf_task_pt_regs(current_task());

	if (t->source == SOURCE_IPC &&
	    gate_of((u32)KERNEL_U64(regs, OFF_REGS_NR)) == t->gate &&
	    interrupted((s64)KERNEL_U64(regs, OFF_REGS_RET)))
		t->source = SOURCE_SIGNAL;
#endif
	return 0;
}
