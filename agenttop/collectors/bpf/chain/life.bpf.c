/* SPDX-License-Identifier: Dual MIT/GPL */
/*
 * Who is measured: threads inherit at fork, opt in, or are adopted by the
 * iterator. On exec, rename and cgroup moves user space decides; a ring tells
 * it of them.
 *
 * Anybody can fill the ring. What it drops is found by user space's next scan
 * of /proc, and threads that opted in by the iterator: that they wait for a
 * slot is a state, not an event.
 */

static __always_inline void tell(u64 kind, u64 pid_tgid, u64 slot)
{
	struct edge *e = edges.ringbuf_reserve(sizeof(*e));

	if (!e) {
		lose(LOSS_EDGE_RING_FULL);
		return;
	}
	e->kind = kind;
	e->pid_tgid = pid_tgid;
	e->slot = slot;
	/* Wakes the engine if it has seen all before; it does not look again at once. */
	edges.ringbuf_submit(e, 0);
}

/*
 * Of renames and cgroup moves one record per process is enough until user
 * space takes it: it looks at what the process is then. The place of another
 * process with the same low bits is taken over, which costs a record more.
 */
static __always_inline void tell_once(u64 kind, u64 pid_tgid)
{
	u32 zero = 0, tgid = pid_tgid >> 32, place = tgid & (EDGE_TOLD - 1);
	u64 *round = edge_round.lookup(&zero), *told = edge_told.lookup(&place);
	u64 mark;

	if (round && told) {
		mark = (u64)tgid << 32 | (u32)*round;
		if (*told == mark)
			return;
		*told = mark;
	}
	tell(kind, pid_tgid, 0);
}

/* Returns what is left. */
static __always_inline u64 leave(u32 slot)
{
	struct control *c;

	if (slot == NO_SLOT || slot >= SLOTS)
		return 1;
	c = controls.lookup(&slot);
	if (!c)
		return 1;
	return __sync_fetch_and_add(&c->threads, -1) - 1;
}

/*
 * Whoever takes a slot from a thread counts it out: the thread's end and an
 * adoption by the iterator may come at once, on two CPUs. It was counted in
 * before anybody could take it, so the count never falls below what is there.
 */
static __always_inline u32 exchange(struct thread *t, u32 slot)
{
	return __sync_lock_test_and_set(&t->slot, slot);
}

static __always_inline void join(struct thread *t, u32 slot, u32 alone)
{
	struct control *c = 0;

	if (t->slot == slot)
		return;
	if (slot != NO_SLOT && slot < SLOTS)
		c = controls.lookup(&slot);
	if (c && c->closed)
		return;
	if (c)
		__sync_fetch_and_add(&c->threads, 1);
	leave(exchange(t, slot));
	t->alone = alone;
	t->lane = 0;
	t->step_lane = 0;
	names_forget(t);
}

/* The state of a task, made when it has none. */
static __always_inline struct thread *enlist(void *task)
{
	struct thread *t;
#if TASK_STORAGE
	t = threads.task_storage_get(task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
#else
	struct thread fresh = {};
	u32 tid = KERNEL_U32(task, OFF_PID);

	t = threads.lookup_or_try_init(&tid, &fresh);
#endif
	if (!t)
		lose(LOSS_STORAGE_FULL);
	return t;
}

/* sched_process_fork(parent, child): for threads and processes alike. */
int p_sched_process_fork(args_t ctx)
{
	struct thread *t = this_thread(), *child;

	if (!t || t->alone || t->slot == NO_SLOT || t->slot >= SLOTS)
		return 0;
	child = enlist((void *)ctx[1]);
	if (child)
		join(child, t->slot, 0);
	return 0;
}

int p_sched_process_exit(args_t ctx)
{
	struct thread *t = this_thread();
	u64 pid_tgid = bpf_get_current_pid_tgid();
	u32 slot;

	if (!t)
		return 0;
	context_end(t);
	slot = exchange(t, NO_SLOT);
	if (!leave(slot))
		tell(EDGE_EXIT, pid_tgid, slot);
#if !TASK_STORAGE
	u32 tid = pid_tgid;

	threads.delete(&tid);
#endif
	return 0;
}

#if TASK_STORAGE
#define renumber(old)
#else
/*
 * A thread that calls exec takes its process's number; whose that was has
 * ended. In the hash its state goes with it.
 */
static __always_inline void renumber(u32 old)
{
	u32 tid = bpf_get_current_pid_tgid();
	struct thread *t;

	if (old == tid)
		return;
	t = threads.lookup(&old);
	if (t && threads.update(&tid, t))
		lose(LOSS_STORAGE_FULL);
	threads.delete(&old);
}
#endif

/* sched_process_exec(task, old_pid, bprm) */
int p_sched_process_exec(args_t ctx)
{
	struct thread *t;

	renumber(ctx[1]);
	t = this_thread();

	tell(EDGE_EXEC, bpf_get_current_pid_tgid(), t ? t->slot : NO_SLOT);
	return 0;
}

/* task_rename(task, comm): another thread's comm can be written too. */
int p_task_rename(args_t ctx)
{
	u64 tid = KERNEL_U32(ctx[0], OFF_PID);
	u64 tgid = KERNEL_U32(ctx[0], OFF_TGID);

	tell_once(EDGE_RENAME, tgid << 32 | tid);
	return 0;
}

/* cgroup_attach_task(cgroup, path, task, threadgroup) */
int p_cgroup_attach_task(args_t ctx)
{
	u64 tid = KERNEL_U32(ctx[2], OFF_PID);
	u64 tgid = KERNEL_U32(ctx[2], OFF_TGID);

	tell_once(EDGE_CGROUP, tgid << 32 | tid);
	return 0;
}

/*
 * The state remembers when the thread asked, in t->last. One that has got no
 * slot asks again, but not more often than once in RETELL_NS: there was no room
 * for it. The record in the ring only makes it known sooner than the iterator.
 */
static __always_inline struct thread *opt_in(u64 kind)
{
	struct thread *t = this_thread();
	u64 slot = t ? t->slot : NO_SLOT, now;

	if (slot != NO_SLOT && slot != PENDING_SLOT)
		return t;
	now = bpf_ktime_get_ns();
	if (slot == NO_SLOT) {
		t = enlist(current_task());
		if (!t)
			return 0;
		/* The iterator may adopt it meanwhile. */
		if (__sync_val_compare_and_swap(&t->slot, NO_SLOT, PENDING_SLOT) != NO_SLOT)
			return t;
		t->alone = 1;
	} else if (now - t->last < RETELL_NS) {
		return t;
	}
	t->last = now;
	t->uid = bpf_get_current_uid_gid();
	t->asks = kind;
	tell(kind, bpf_get_current_pid_tgid(), t->uid);
	return t;
}

static __always_inline void marker(u64 step_id, u64 how, u64 deadline, u64 user)
{
	struct thread *t = opt_in(EDGE_MARKER);

	if (!t)
		return;
	/* A switch amidst would read half a context. */
	preempt_off();
	step_marked(t, step_id, how, deadline, user);
	preempt_on();
}

/* task_prctl_unknown(option, arg2, arg3, arg4, arg5): the step marker. */
int p_task_prctl_unknown(args_t ctx)
{
	if ((u32)ctx[0] == STEP_MARKER)
		marker(ctx[1], ctx[2], ctx[3], ctx[4]);
	return 0;
}

#if LEVEL_FULL
/*
 * sched_setattr(pid, attr, flags) answers EINVAL on a stock kernel; the
 * attributes are read at the exit, when their page is surely there.
 */
static __always_inline void may_opt_in(void *regs, u32 nr)
{
	u64 flags = 0, attr;
	u32 pid;

	if (nr == NR_PRCTL) {
#if !HAS_PRCTL_UNKNOWN
		if ((u32)KERNEL_U64(regs, OFF_REGS_ARG1) == STEP_MARKER)
			marker(KERNEL_U64(regs, OFF_REGS_ARG2),
			       KERNEL_U64(regs, OFF_REGS_ARG3),
			       KERNEL_U64(regs, OFF_REGS_ARG4),
			       KERNEL_U64(regs, OFF_REGS_ARG5));
#endif
		return;
	}
	pid = KERNEL_U64(regs, OFF_REGS_ARG1);
	if (pid && pid != (u32)bpf_get_current_pid_tgid())
		return;
	attr = KERNEL_U64(regs, OFF_REGS_ARG2);
	bpf_probe_read_user(&flags, sizeof(flags), (void *)(attr + 8));
	if (flags & SCHED_FLAG_AGENT_LATENCY)
		opt_in(EDGE_SCHED_SETATTR);
}

int p_sys_exit(args_t ctx)
{
	void *regs = (void *)ctx[0];
	u32 nr = KERNEL_U64(regs, OFF_REGS_NR);
	void *task = current_task();
	struct thread *t;
	int gate;

	if (nr == NR_SCHED_SETATTR || nr == NR_PRCTL)
		may_opt_in(regs, nr);
	if (nobodys(task))
		return 0;
	gate = gate_of(nr);
	if (gate < 0)
		return 0;
	t = thread_of(task);
	if (t)
		gate_returned(t, gate, (s64)ctx[1]);
	return 0;
}
#endif

#if TASK_STORAGE
/*
 * Not threads of a program's own, though they may be its process's: a worker
 * of io_uring waits in no gate, and its saved registers are those of whoever
 * started it, in one.
 */
#define PF_OTHERS	(PF_KTHREAD | PF_IO_WORKER | PF_USER_WORKER)

/*
 * Flags that every sleeping thread of a program has: of those, the ones that
 * whoever reads the iterator, fresh from user space, has not are set by going
 * off the CPU and cleared on the way to user space.
 */
static __always_inline void learn(void *task, u32 tid)
{
#ifdef OFF_THREAD_FLAGS
	u32 zero = 0;
	struct learned *l;
	u64 flags;

	l = learned.lookup(&zero);
	if (!l || !l->learning)
		return;
	flags = KERNEL_U64(task, OFF_THREAD_FLAGS);
	if (tid == (u32)bpf_get_current_pid_tgid()) {
		l->reader = flags;
	} else if (KERNEL_U32(task, OFF_STATE) & TASK_NORMAL &&
		   !(KERNEL_U32(task, OFF_FLAGS) & PF_OTHERS)) {
		l->sleepers &= flags;
		l->count++;
	}
#endif
}

/*
 * A thread that is about to end has, or will have, its last look at its state
 * in sched_process_exit. Where that has gone by already, nobody would count
 * the thread out again; so who finds the flag behind the join takes it back.
 */
static __always_inline void adopt(struct thread *t, void *task, u32 slot, u32 alone)
{
	join(t, slot, alone);
	barrier();
	if (KERNEL_U32(task, OFF_FLAGS) & PF_EXITING)
		leave(exchange(t, NO_SLOT));
}

static __always_inline int closed(u32 slot)
{
	struct control *c = slot < SLOTS ? controls.lookup(&slot) : 0;

	return c && c->closed;
}

/*
 * The task iterator, run by reading its file: adopts whom user space has put
 * into assignments (processes by tgid, threads by tid), lists who is measured
 * and who waits for a slot, and takes slots that are closed from their threads.
 */
int p_iter_task(args_t ctx)
{
	void *meta = (void *)ctx[0], *task = (void *)ctx[1], *seq;
	struct assignment *a;
	struct listed l = {};
	struct thread *t;
	u32 tid, tgid;

	if (!task)
		return 0;
	tid = KERNEL_U32(task, OFF_PID);
	tgid = KERNEL_U32(task, OFF_TGID);
	learn(task, tid);
	a = assignments.lookup(&tid);
	if (!a) {
		a = assignments.lookup(&tgid);
		if (a && a->alone)
			a = 0;
	}
	if (a && !(KERNEL_U32(task, OFF_FLAGS) & (PF_OTHERS | PF_EXITING))) {
		t = threads.task_storage_get(task, 0,
					     BPF_LOCAL_STORAGE_GET_F_CREATE);
		if (t)
			adopt(t, task, a->slot, a->alone);
		else
			lose(LOSS_STORAGE_FULL);
	} else {
		t = thread_of(task);
	}
	if (!t || t->slot == NO_SLOT || t->slot > PENDING_SLOT)
		return 0;
	if (closed(t->slot)) {
		leave(exchange(t, NO_SLOT));
		return 0;
	}
	l.pid_tgid = (u64)tgid << 32 | tid;
	l.slot = t->slot;
	l.steps = t->steps;
	l.last_ns = t->last;
	l.cpu = t->cpu;
	l.uid = t->uid;
	l.asks = t->asks;
	seq = (void *)KERNEL_U64(meta, OFF_ITER_SEQ);
	bpf_seq_write(seq, &l, sizeof(l));
	return 0;
}
#endif
