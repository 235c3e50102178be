/* SPDX-License-Identifier: Dual MIT/GPL */
/*
 * Deferred completions: kernel threads that wake, and what they run.
 *
 * Work that is queued, and who works at what, stand in tables of a fixed size,
 * each in a place that its address or thread id gives. Two that share one lose
 * a time, counted by its absence; nothing can fill up, as work that is
 * cancelled is told by no tracepoint.
 */

/* The verifier calculates with no pointer: what comes out of memory is a number. */
static __always_inline u64 as_number(struct delivery *d, u64 pointer)
{
	*(volatile u64 *)&d->number = pointer;
	return *(volatile u64 *)&d->number;
}

static __always_inline struct queued_work *queued_work(u64 work)
{
	u32 at = (work >> 4 ^ work >> 14) & (WORKS - 1);

	return works.lookup(&at);
}

static __always_inline struct worker *worker_of(u32 tid)
{
	u32 at = tid & (WORKERS - 1);

	return workers.lookup(&at);
}

/* workqueue_queue_work(cpu, pwq, work) */
int p_cause_queue_work(args_t ctx)
{
	struct delivery *d = this_delivery();
	struct queued_work *q;
	u64 work;

	if (!d)
		return 0;
	work = as_number(d, ctx[2]);
	q = queued_work(work);
	if (!q)
		return 0;
	q->ts = bpf_ktime_get_ns();
	q->work = work;
	return 0;
}

/* workqueue_execute_start(work) */
int p_cause_work(args_t ctx)
{
	u32 tid = bpf_get_current_pid_tgid();
	struct worker *w = worker_of(tid);
	struct delivery *d = this_delivery();
	struct queued_work *q;
	u64 work;

	if (!w || !d)
		return 0;
	work = as_number(d, ctx[0]);
	q = queued_work(work);
	if (!q)
		return 0;
	w->tid = tid;
	w->function = KERNEL_U64(ctx[0], OFF_WORK_FUNC);
	w->since = bpf_ktime_get_ns();
	w->queued = 0;
	if (q->work == work) {
		w->queued = q->ts;
		q->work = 0;
	}
	return 0;
}

int p_cause_work_end(args_t ctx)
{
	u32 tid = bpf_get_current_pid_tgid();
	struct worker *w = worker_of(tid);

	if (w && w->tid == tid)
		w->tid = 0;
	return 0;
}

/* Since when does a kernel thread run? */
int p_cause_worker(args_t ctx)
{
	struct delivery *d;

	if (!(KERNEL_U32(ctx[2], OFF_FLAGS) & PF_KTHREAD))
		return 0;
	d = this_delivery();
	if (d)
		d->thread_in = bpf_ktime_get_ns();
	return 0;
}

/* Label: the work's function, or the thread's name. */
static __always_inline void give_work(struct given *g, struct cpu *cpu,
				      struct delivery *d, u64 now)
{
	u32 flags, tid = bpf_get_current_pid_tgid();
	void *task = current_task();
	struct worker *w;

	if (cpu->hard || cpu->soft || !tid)
		return;
	flags = KERNEL_U32(task, OFF_FLAGS);
	if (!(flags & PF_KTHREAD) || flags & PF_IO_WORKER)
		return;
	w = worker_of(tid);
	g->work_label[0] = 0;
	g->work_label[1] = 0;
	g->work_label[2] = 0;
	g->work_queued = 0;
	g->work_known = 0;
	if (flags & PF_WQ_WORKER && w && w->tid == tid) {
		g->work_label[0] = w->function;
		g->work_run = now - w->since;
		if (w->queued) {
			g->work_queued = w->since - w->queued;
			g->work_known = 1;
		}
	} else {
		g->work_label[1] = KERNEL_U64(task, OFF_COMM);
		g->work_label[2] = KERNEL_U64(task, OFF_COMM + 8);
		g->work_run = d->thread_in ? now - d->thread_in : 0;
	}
	g->has |= 1U << CAUSE_WORKQUEUE;
}
