/* SPDX-License-Identifier: Dual MIT/GPL */
/*
 * Causes from disks: which request a thread waited for, how long it stood in
 * the queue and how long the device took.
 *
 * A request is known from its begin (block_io_start, in who asked for it; before
 * 6.5 block_rq_insert, or its issue) to its completion, which is in the context
 * that then wakes whoever waits. So the last completion on a CPU stays at hand
 * until the next one, or until the CPU does something else: if it woke no step
 * by then, it was background.
 */

/* A request on its way. */
struct request {
	u64 begun;
	u64 issued;
	u32 slot;		/* of who asked for it; NO_SLOT: nobody's */
	u32 pad;
};

/* The last completion on a CPU. */
struct finished {
	u64 at;			/* 0: there is none */
	u64 chain_ts;		/* when the chain's program saw it */
	u64 queue_ns;
	u64 device_ns;
	u64 begun;
	u64 bytes;
	u64 device;
	u64 operation;
	u32 tid;		/* in whose context */
	u32 slot;
	u32 woke;
	u32 pad;
} PER_CPU;

BPF_HASH(requests, u64, struct request, 16384);
BPF_F_TABLE("array", u32, struct finished, finished, CPU_ROWS, MMAPABLE);

#define BACKGROUND	(1ULL << 8)
#define CAUSES_OF_BLOCK	(1U << CAUSE_BLOCK | 1U << CAUSE_BLOCK_IN_COMPUTE)

static __always_inline struct finished *last_finished(void)
{
	u32 row = this_row();

	return finished.lookup(&row);
}

/* The agent for which the current task works; io_uring's workers are their process's. */
static __always_inline u32 slot_here(void)
{
	void *task = current_task();
	struct thread *t = thread_of(task);

	if (!t && KERNEL_U32(task, OFF_FLAGS) & PF_IO_WORKER)
		t = thread_of((void *)KERNEL_U64(task, OFF_GROUP_LEADER));
	return t && t->slot < SLOTS ? t->slot : NO_SLOT;
}

static __always_inline void request_begun(u64 key)
{
	struct request fresh = {};

	fresh.begun = bpf_ktime_get_ns();
	fresh.slot = slot_here();
	if (requests.update(&key, &fresh))
		lose(LOSS_REQUESTS_FULL);
}

int p_block_begin(args_t ctx)
{
	request_begun(ctx[0]);
	return 0;
}

/* It may be issued again, after the device has turned it away. */
int p_block_issue(args_t ctx)
{
	u64 key = ctx[0];
	struct request *r = requests.lookup(&key);

#if BLOCK_FROM_INSERT
	/* Without a scheduler it goes to the device at once, and is inserted nowhere. */
	if (!r) {
		request_begun(key);
		r = requests.lookup(&key);
	}
#endif
	if (r)
		r->issued = bpf_ktime_get_ns();
	return 0;
}

/* Nobody's step waited for it. */
static __always_inline void finished_over(struct finished *f)
{
	struct told told;

	if (f->at && !f->woke && f->slot != NO_SLOT &&
	    causes_wanted() & 1U << CAUSE_BLOCK) {
		told_label(&told, f->device, f->operation | BACKGROUND);
		told.extra[0] = f->queue_ns;
		told.extra[1] = f->device_ns;
		told.extra[3] = f->bytes;
		detail_event(f->slot, CAUSE_BLOCK, &told);
	}
	f->at = 0;
}

/* block_rq_complete(request, error, bytes) */
int p_block_complete(args_t ctx)
{
	struct finished *f = last_finished();
	struct cpu *cpu = this_cpu();
	u64 key = ctx[0], queue, disk;
	struct request *r;

	if (!f || !cpu)
		return 0;
	finished_over(f);
	r = requests.lookup(&key);
	if (!r)
		return 0;
	f->at = bpf_ktime_get_ns();
	f->chain_ts = cpu->block_ts;
	f->begun = r->begun;
	/* One that was never issued was completed by the kernel itself. */
	f->queue_ns = (r->issued ? r->issued : f->at) - r->begun;
	f->device_ns = r->issued ? f->at - r->issued : 0;
	f->slot = r->slot;
	requests.delete(&key);
	f->bytes = (u32)ctx[2];
	f->operation = KERNEL_U32(ctx[0], OFF_REQUEST_FLAGS) & 0xff;
	f->device = 0;
	queue = KERNEL_U64(ctx[0], OFF_REQUEST_QUEUE);
	disk = queue ? KERNEL_U64(queue, OFF_QUEUE_DISK) : 0;
	if (disk)
		f->device = (u64)KERNEL_U32(disk, OFF_DISK_MAJOR) << 32 |
			    KERNEL_U32(disk, OFF_DISK_MINOR);
	f->tid = bpf_get_current_pid_tgid();
	f->woke = 0;
	return 0;
}

/*
 * Is it the last completion on this CPU that wakes? An interrupt or softirq
 * says so by itself (wake.bpf.c). A driver's kernel thread completes, then
 * wakes at once.
 */
static __always_inline void give_block(struct thread *t, struct given *g, u64 now)
{
	struct finished *f = last_finished();
	struct cpu *cpu = this_cpu();
	u32 source = t->wake.source;

	if (!f || !cpu || !f->at)
		return;
	if (source == SOURCE_BLOCK ? f->chain_ts != cpu->block_ts :
	    source != SOURCE_KWORKER || now - f->at > RACE_NS ||
	    t->wake.kind != WAKER_TASK ||
	    f->tid != (u32)bpf_get_current_pid_tgid())
		return;
	f->woke = 1;
	g->has |= 1U << CAUSE_BLOCK;
	g->block_begun = f->begun;
	g->block_label[0] = f->device;
	g->block_label[1] = f->operation;
	g->block_extra[0] = f->queue_ns;
	g->block_extra[1] = f->device_ns;
	g->block_extra[2] = now - f->at;
	g->block_extra[3] = f->bytes;
}

/* What of it lay in the stage wait: it may have begun before the gate. */
static __always_inline u64 waited(struct thread *t, u64 begun)
{
	u64 end = t->enter + t->stage[STAGE_WAIT];

	if (begun < t->enter)
		begun = t->enter;
	return end > begun ? end - begun : 0;
}

static __always_inline void told_block(struct told *told, struct given *g)
{
	told_label(told, g->block_label[0], g->block_label[1]);
	told->extra[0] = g->block_extra[0];
	told->extra[1] = g->block_extra[1];
	told->extra[2] = g->block_extra[2];
	told->extra[3] = g->block_extra[3];
}

static __always_inline void take_block(struct thread *t, struct given *g)
{
	u64 ns = waited(t, g->block_begun);

	told_block(cause_tell(t, CAUSE_BLOCK, ns), g);
}

/*
 * Awake again in compute: by a disk? If a step waits for several requests one
 * after the other, the first one's label has them all.
 */
static __always_inline int by_block(struct thread *t)
{
	struct given *g = &t->given;
	u32 bit = 1U << CAUSE_BLOCK_IN_COMPUTE;
	struct told *told = &t->told[CAUSE_BLOCK_IN_COMPUTE - FIRST_LABELLED];

	if (g->seq != t->wake.seq || !(g->has & 1U << CAUSE_BLOCK) ||
	    !(causes_wanted() & bit))
		return 0;
	if (!(t->caused & bit)) {
		told_block(told, g);
	} else {
		told->extra[0] += g->block_extra[0];
		told->extra[1] += g->block_extra[1];
		told->extra[2] += g->block_extra[2];
		told->extra[3] += g->block_extra[3];
	}
	return 1;
}
