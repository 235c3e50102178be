/* SPDX-License-Identifier: Dual MIT/GPL */
/*
 * io_uring: from a request's submission to its completion (CQE), by opcode,
 * and steps told by user_data (agenttop_step.h).
 *
 * Mostly the completion is posted by the thread that waits, once it is awake:
 * the first one before it leaves its gate is what it was woken for. One that
 * is posted before the wake-up (by a worker, by another thread of the ring)
 * stays at hand until the next, or a switch, on that CPU.
 *
 * Requests on their way are kept in a place for each agent, so that no agent
 * takes anybody else's: sets of four, the oldest of which gives way.
 */

#define RING_WAYS	4
#define RING_SETS	32	/* a power of two */
#define RING_OTHER	0xff	/* its submission was not seen */

struct ring_request {
	u64 request;
	u64 begun;
	u32 opcode;
	u32 worker;		/* went to one of io_uring's own threads */
};

struct ring_set {
	struct ring_request at[RING_WAYS];
};

/* The last completion on a CPU that was not the waiting thread's own. */
struct ring_done {
	u64 at;			/* 0: there is none */
	u64 begun;
	u32 opcode;
	u32 worker;
	u32 tid;		/* in whose context */
	u32 slot;
	u32 woke;
	u32 lane;		/* told by user_data */
} PER_CPU;

BPF_ARRAY(ring_sets, struct ring_set, SLOTS * RING_SETS);
BPF_F_TABLE("array", u32, struct ring_done, ring_done, CPU_ROWS, MMAPABLE);

static __always_inline struct ring_done *last_done(void)
{
	u32 row = this_row();

	return ring_done.lookup(&row);
}

/* A pointer as a number: the verifier lets nobody compute with a pointer. */
static __always_inline u64 pointer_in(unsigned long long *argument)
{
	u64 v = 0;

	bpf_probe_read_kernel(&v, sizeof(v), argument);
	return v;
}

static __always_inline u32 opcode_of(void *request)
{
	u32 v;

	asm volatile("%0 = *(u8 *)(%1 + %2)"
		     : "=r"(v) : "r"(request), "i"(OFF_RING_OPCODE));
	return v;
}

static __always_inline struct ring_set *ring_set(u32 slot, u64 request)
{
	u32 at = (request * 0x9e3779b97f4a7c15ULL) >> 32;

	if (slot == NO_SLOT)
		return 0;
	at = slot * RING_SETS + (at & (RING_SETS - 1));
	return ring_sets.lookup(&at);
}

static __always_inline struct ring_request *ring_find(u32 slot, u64 request)
{
	struct ring_set *set = ring_set(slot, request);

	if (!set)
		return 0;
#pragma clang loop unroll(full)
	for (u32 i = 0; i < RING_WAYS; i++)
		if (set->at[i].request == request)
			return &set->at[i];
	return 0;
}

/* io_uring_submit_req(request); io_uring_submit_sqe(request, ...) before 6.3 */
int p_ring_submit(args_t ctx)
{
	u64 request = pointer_in(&ctx[0]), oldest = ~0ULL;
	struct ring_set *set = ring_set(slot_here(), request);
	struct ring_request *r = 0;

	if (!set)
		return 0;
#pragma clang loop unroll(full)
	for (u32 i = 0; i < RING_WAYS; i++) {
		u64 age = set->at[i].request == request ? 0 : set->at[i].begun;

		if (age < oldest) {
			oldest = age;
			r = &set->at[i];
		}
	}
	if (!r)
		return 0;
	r->request = request;
	r->begun = bpf_ktime_get_ns();
	r->opcode = opcode_of((void *)ctx[0]);
	r->worker = 0;
	return 0;
}

/* io_uring_queue_async_work(request, rw) */
int p_ring_worker(args_t ctx)
{
	struct ring_request *r = ring_find(slot_here(), pointer_in(&ctx[0]));

	if (r)
		r->worker = 1;
	return 0;
}

/* Is the thread, which runs, still in the gate in which it slept? */
static __always_inline int in_its_gate(struct thread *t)
{
#if LEVEL_FULL
	return t->enter && t->in && !t->exit;
#else
	return t->enter && t->in && !t->left && !left_gate(current_task());
#endif
}

static __always_inline void told_ring(struct told *told, u64 label, u64 ns, u32 worker)
{
	told_label(told, label, 0);
	told->extra[0] = ns;
	told->extra[1] = worker;
}

static __always_inline void ring_background(u32 slot, u32 opcode, u64 ns, u32 worker)
{
	struct told told;

	if (slot == NO_SLOT || !(causes_wanted() & 1U << CAUSE_IO_URING))
		return;
	told_ring(&told, opcode | BACKGROUND, ns, worker);
	detail_event(slot, CAUSE_IO_URING, &told);
}

static __always_inline void ring_over(struct ring_done *d)
{
	if (d->at && !d->woke)
		ring_background(d->slot, d->opcode, d->at - d->begun, d->worker);
	d->at = 0;
}

/* The step goes by what completed, if it has no name. */
static __always_inline void ring_named(struct thread *t, u32 lane)
{
	if (lane && !t->lane)
		t->lane = lane;
}

/*
 * A completion whose user_data names a context that the process has told of:
 * it began with the request and is over now. Returns the lane of its name.
 */
static __always_inline u32 ring_context(u32 slot, u64 user_data, u64 ns)
{
	u64 key = bpf_get_current_pid_tgid() >> 32 << 32 | (user_data >> 32 & 0xffff);
	struct marks *m = marks.lookup(&slot);
	struct kept *k = 0;
	struct kept_set *set;
	u32 class;

	/* Others may use what looks like it. */
	if (!m || !m->kept)
		return 0;
	set = kept_set(slot, key);
	if (!set)
		return 0;
#pragma clang loop unroll(full)
	for (u32 i = 0; i < KEPT_WAYS; i++)
		if (set->at[i].key == key)
			k = &set->at[i];
	if (!k) {
		__sync_fetch_and_add(&m->strays, 1);
		return 0;
	}
	__sync_fetch_and_add(&m->contexts, 1);
	class = k->latency & (NR_CLASSES - 1);
	/* 0: when it was submitted is not known. */
	if (k->span && ns > k->span)
		__sync_fetch_and_add(&m->missed[class], 1);
	else if (k->span && ns)
		__sync_fetch_and_add(&m->met[class], 1);
	return k->lane;
}

/* io_uring_complete(ctx, request, cqe), or (ctx, request, user_data, ...): a further completion of one request has none. */
int p_ring_complete(args_t ctx)
{
	struct thread *t = this_thread();
	u32 slot = slot_here(), worker = 0, opcode = RING_OTHER;
	u64 user_data, now, begun;
	u32 lane = 0;
	struct ring_request *r;
	struct ring_done *d;

	if (slot == NO_SLOT)
		return 0;
	now = begun = bpf_ktime_get_ns();
	r = ring_find(slot, ctx[1]);
	if (r) {
		begun = r->begun;
		worker = r->worker;
		opcode = r->opcode;
	}
#if RING_HAS_CQE
	user_data = KERNEL_U64(ctx[2], 0);
#else
	user_data = ctx[2];
#endif
	if (user_data >> 48 == STEP_URING_MAGIC)
		lane = ring_context(slot, user_data, now - begun);
	if (t && in_its_gate(t)) {
		ring_named(t, lane);
		if (t->caused & 1U << CAUSE_IO_URING)
			ring_background(slot, opcode, now - begun, worker);
		else if (causes_wanted() & 1U << CAUSE_IO_URING)
			told_ring(cause_tell(t, CAUSE_IO_URING, waited(t, begun)),
				  opcode, now - begun, worker);
		goto gone;
	}
	d = last_done();
	if (!d)
		return 0;
	ring_over(d);
	d->at = now;
	d->begun = begun;
	d->opcode = opcode;
	d->worker = worker;
	d->tid = bpf_get_current_pid_tgid();
	d->slot = slot;
	d->lane = lane;
	d->woke = 0;
gone:
	if (r) {
		r->request = 0;
		r->begun = 0;
	}
	return 0;
}

static __always_inline void give_ring(struct thread *t, struct given *g, u64 now)
{
	struct ring_done *d = last_done();

	if (!d || !d->at || t->wake.kind != WAKER_TASK ||
	    d->tid != (u32)bpf_get_current_pid_tgid() || now - d->at > RACE_NS ||
	    d->slot != t->slot)
		return;
	d->woke = 1;
	g->has |= 1U << CAUSE_IO_URING;
	g->ring_begun = d->begun;
	g->ring_ns = d->at - d->begun;
	g->ring_opcode = d->opcode;
	g->ring_worker = d->worker;
	g->ring_lane = d->lane;
}

static __always_inline void take_ring(struct thread *t, struct given *g)
{
	ring_named(t, g->ring_lane);
	if (causes_wanted() & 1U << CAUSE_IO_URING)
		told_ring(cause_tell(t, CAUSE_IO_URING, waited(t, g->ring_begun)),
			  g->ring_opcode, g->ring_ns, g->ring_worker);
}
