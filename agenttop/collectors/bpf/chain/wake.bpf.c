/* SPDX-License-Identifier: Dual MIT/GPL */
/*
 * Wake-ups: what completed the event that a thread waited for, and when. The
 * step takes it over at the switch-in (chain.bpf.c).
 */

static __always_inline void by_hard(struct wake *w, struct cpu *cpu, u64 now)
{
	u32 line;
	u32 *source;

	w->event = cpu->hard_ts;
	w->soft = now;
	w->kind = cpu->hard;
	w->id = cpu->hard_id;
	if (cpu->hrtimer) {
		w->source = SOURCE_TIMER;
		w->late = cpu->hrtimer_late;
		w->late_idle = cpu->hard_idle != 0;
	} else if (cpu->block_ts >= cpu->hard_ts) {
		w->source = SOURCE_BLOCK;
	} else if (cpu->hard == WAKER_LINE) {
		line = cpu->hard_id;
		source = irq_source.lookup(&line);
		w->source = source ? *source : SOURCE_UNKNOWN;
	} else if (cpu->hard_id == VECTOR_LOCAL_TIMER) {
		w->source = SOURCE_TIMER;
	} else if (cpu->hard_id == VECTOR_IRQ_WORK) {
		w->source = SOURCE_KWORKER;
	} else {
		w->source = SOURCE_UNKNOWN;
	}
}

static __always_inline void by_softirq(struct wake *w, struct cpu *cpu)
{
	u32 vec = cpu->soft_vec;

	w->event = cpu->soft_event;
	w->soft = cpu->soft_ts;
	w->kind = WAKER_SOFTIRQ;
	w->id = vec;
	if (cpu->block_ts >= cpu->soft_ts)
		w->source = SOURCE_BLOCK;
	else if (vec == SOFTIRQ_NET_RX || vec == SOFTIRQ_NET_TX)
		w->source = SOURCE_NET;
	else if (vec == SOFTIRQ_TIMER || vec == SOFTIRQ_HRTIMER)
		w->source = SOURCE_TIMER;
	else if (vec == SOFTIRQ_BLOCK || vec == SOFTIRQ_IRQ_POLL)
		w->source = SOURCE_BLOCK;
	else
		w->source = SOURCE_KWORKER;
}

static __always_inline void by_task(struct wake *w, struct cpu *cpu, u64 now,
				    void *woken_task)
{
	void *task = current_task();
	u32 flags = KERNEL_U32(task, OFF_FLAGS);
	u64 waker = bpf_get_current_pid_tgid();

	w->event = now;
	w->soft = now;
	w->kind = WAKER_TASK;
	w->id = waker;
	if (flags & PF_IO_WORKER) {
		w->source = SOURCE_IO_URING;
	} else if (flags & PF_EXITING) {
		/* A thread that ends wakes who joins it: no process ended. */
		w->source = KERNEL_U32(woken_task, OFF_TGID) == waker >> 32 ?
			    SOURCE_IPC : SOURCE_CHILD;
	} else if (!w->id) {
		/* The idle task runs what other CPUs queued, without an interrupt. */
		w->kind = WAKER_UNKNOWN;
		w->source = SOURCE_UNKNOWN;
		if (cpu->block_ts && now - cpu->block_ts < RACE_NS)
			w->source = SOURCE_BLOCK;
	} else if (flags & (PF_WQ_WORKER | PF_KTHREAD)) {
		w->source = SOURCE_KWORKER;
	} else {
		w->source = SOURCE_IPC;
	}
}

/* Fires at the waker, for a task whose state is a sleeping one. */
int p_sched_waking(args_t ctx)
{
	struct thread *t = thread_of((void *)ctx[0]);
	struct cpu *cpu;
	struct wake *w;
	u64 now;

	if (!t)
		return 0;
	cpu = this_cpu();
	if (!cpu)
		return 0;
	now = bpf_ktime_get_ns();
	w = &t->wake;
	w->wakeup = 0;
	w->late = 0;
	if (cpu->hard)
		by_hard(w, cpu, now);
	else if (cpu->soft)
		by_softirq(w, cpu);
	else
		by_task(w, cpu, now, (void *)ctx[0]);
	w->waking = now;
	w->cpu = bpf_get_smp_processor_id();
	w->seq++;
	window_open(t, now);
	return 0;
}

/* Fires on the target CPU, 8 to 128 us later when that is a remote one. */
int p_sched_wakeup(args_t ctx)
{
	struct thread *t = thread_of((void *)ctx[0]);

	if (t && !t->wake.wakeup) {
		t->wake.wakeup = bpf_ktime_get_ns();
		t->wake.target = KERNEL_U32(ctx[0], OFF_TASK_CPU);
	}
	return 0;
}
